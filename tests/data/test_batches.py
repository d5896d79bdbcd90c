"""Batches: every row once an epoch, masks kept through padding and packing, positions that resume."""

import collections
import itertools
import json

import numpy as np
import pytest
from tiny import rows

from data.batches import add_rows, buckets, in_order, micro_batches, pad, training_batches

ROWS = rows(range(5, 29))


def batches(packing, seed=0, batch_size=4):
    return training_batches(ROWS, batch_size=batch_size, length=32, packing=packing, seed=seed)


def segments(batch):
    """(tokens, mask) of every row inside a batch."""
    for at in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][at].max() + 1):
            inside = batch["segment_ids"][at] == segment
            assert batch["positions"][at, inside].tolist() == list(range(inside.sum()))
            yield tuple(batch["tokens"][at, inside]), tuple(batch["loss_mask"][at, inside])
        assert not batch["loss_mask"][at, batch["segment_ids"][at] == 0].any()


EXPECTED = {(tuple(row.tokens), tuple(row.loss_mask)) for row in ROWS}


@pytest.mark.parametrize("packing", [False, True])
def test_every_row_comes_whole_with_its_mask_and_once_an_epoch(packing):
    seen = collections.Counter()
    stream = (segment for batch in batches(packing) for segment in segments(batch))
    for segment in itertools.islice(stream, 3 * len(ROWS)):
        seen[segment] += 1
    assert set(seen) <= EXPECTED
    if not packing:  # packing holds rows back in open bins, so it has no sharp epochs
        assert set(seen.values()) == {3}
    assert len(seen) == len(ROWS)


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed, start):
        stream = (segment for batch in batches(False, seed) for segment in segments(batch))
        return list(itertools.islice(stream, start, start + len(ROWS)))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, len(ROWS))


@pytest.mark.parametrize("packing", [False, True])
def test_a_saved_position_continues_exactly(packing):
    iterator = iter(batches(packing))
    for _ in range(5):
        next(iterator)
    position = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(8)]
    resumed = iter(batches(packing))
    resumed.set_state(position)
    for batch in expected:
        again = next(resumed)
        for name, array in batch.items():
            np.testing.assert_array_equal(array, again[name])


def test_packing_wastes_little():
    some = list(itertools.islice(batches(True), 6))
    assert np.mean([batch["segment_ids"] == 0 for batch in some]) < 0.2


def test_buckets_are_few_and_hold_the_longest():
    assert buckets(284)[-1] == 288
    assert buckets(5) == [8]
    assert all(size % 8 == 0 for size in buckets(284))
    assert len(buckets(4096)) < 22
    batch = pad([row._asdict() for row in ROWS[:4]], buckets(28))
    assert batch["tokens"].shape == (4, 16)


def test_micro_batches_keep_all_rows_and_fill_up_with_empty_ones():
    batch = pad([row._asdict() for row in ROWS[:6]], [16])
    split = micro_batches(batch, 2, 4)
    assert split["tokens"].shape == (2, 4, 16)
    flat = {name: array.reshape(8, 16) for name, array in split.items()}
    np.testing.assert_array_equal(flat["tokens"][:6], batch["tokens"])
    assert not flat["segment_ids"][6:].any()
    assert not flat["loss_mask"][6:].any()


def test_in_order_gives_every_row_once():
    found = in_order(ROWS, batch_size=7, length=28)
    assert {len(batch["tokens"]) for batch in found} == {7}
    assert [segment for batch in found for segment in segments(batch)] == [
        (tuple(row.tokens), tuple(row.loss_mask)) for row in ROWS]
    assert add_rows(found[0], 7) is found[0]
