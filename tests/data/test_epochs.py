"""Steps of an epoch: as many batches as give the rows or tokens of all records once, in every packing."""

import math

import numpy as np
import pytest

from data.batches import TrainingBatches
from data.epochs import steps_per_epoch
from data.reading import Encoder, check_rows
from data.streams import Streams
from errors import InputError


class Rows:
    """Records of 3 to 24 tokens, some of them bad."""

    def __init__(self, count, bad=()):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        if index in self.bad:
            raise InputError(f"{self.place(index)}: bad")
        return {"tokens": [1 + index] * (3 + (index * 7) % 22)}

    def place(self, index):
        return f"rows:{index}"


def streams(packing, source, batch_size=4, max_length=32, **encoder):
    encoder = Encoder(None, 10_000, None if packing == "concat-then-split" else max_length, **encoder)
    return Streams((source,), (1.0,), encoder, batch_size, 32, packing, seed=0)


def given(made, steps):
    """Rows and tokens of so many batches."""
    batches = TrainingBatches(made, range(made.batch_size))
    found = [next(batches)["segment_ids"] for _ in range(steps)]
    return sum(len(each) for each in found), sum(int(np.count_nonzero(each)) for each in found)


@pytest.mark.parametrize("packing", ["none", "first-fit", "concat-then-split"])
@pytest.mark.parametrize(("count", "batch_size"), [(48, 4), (7, 3)])
def test_that_many_steps_give_all_rows_once(packing, count, batch_size):
    source = Rows(count)
    tokens = sum(len(row["tokens"]) for row in source)
    made = streams(packing, source, batch_size)
    one = steps_per_epoch(made)
    before, after = (given(made, steps) for steps in (math.ceil(one) - 1, math.ceil(one)))
    unit, total = (0, count) if packing == "none" else (1, tokens)
    assert before[unit] < total <= after[unit]
    if packing != "first-fit":
        assert one == (count / batch_size if packing == "none" else tokens / (32 * batch_size))


def test_rows_that_are_left_out_are_not_counted():
    assert steps_per_epoch(streams("none", Rows(48, bad=(3, 5)), bad_rows="skip")) == 46 / 4
    long = sum(len(row["tokens"]) > 10 for row in Rows(48))
    assert steps_per_epoch(streams("none", Rows(48), max_length=10, too_long="drop")) == (48 - long) / 4
    with pytest.raises(InputError, match="^rows:0 and those after it: no row is left"):
        steps_per_epoch(streams("none", Rows(2, bad=(0, 1)), bad_rows="skip"))
    with pytest.raises(InputError, match="rows:3: bad"):
        steps_per_epoch(streams("none", Rows(48, bad=(3, 5))))


def test_records_that_are_one_row_each_are_not_read():
    assert steps_per_epoch(streams("none", Rows(48, bad=range(48)), form="pair")) == 12


def test_the_rows_that_are_checked_make_the_same_epoch():
    made = streams("none", Rows(48, bad=(3, 5)), bad_rows="skip")
    counts = check_rows(made.sources, made.encoder, 1000).counts
    assert (counts["rows_checked"], counts["rows_made"]) == (48, 46)
    with pytest.raises(InputError, match="none of 2 rows can be trained on: rows_skipped 2; look at"):
        check_rows((Rows(2, bad=(0, 1)),), made.encoder, 1000)
    assert steps_per_epoch(made) == counts["rows_made"] / made.batch_size
