"""Padding and stacking: masks kept, few lengths, empty rows that count for nothing."""

import itertools

import numpy as np
import pytest
from tiny import rows

from batch import (
    COMPILING,
    MOST_LENGTHS,
    add_rows,
    bucket_length,
    choose_lengths,
    in_order,
    ladder,
    lengthened,
    pad,
    widen,
)

ROWS = rows(range(5, 29))


def segments(batch):
    """(tokens, mask) of every row inside a batch."""
    for at in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][at].max() + 1):
            inside = batch["segment_ids"][at] == segment
            assert batch["positions"][at, inside].tolist() == list(range(inside.sum()))
            yield tuple(batch["tokens"][at, inside]), tuple(batch["loss_mask"][at, inside])
        assert not batch["loss_mask"][at, batch["segment_ids"][at] == 0].any()


def positions(lengths, batch_size, sizes, batches):
    """To compute, COMPILING batches of each length besides, for batches of rows of like length."""
    longest = sorted(lengths, reverse=True)[::batch_size]
    return sum(bucket_length(each, sizes) for each in longest) * batches / len(longest) + COMPILING * sum(sizes)


@pytest.mark.parametrize("batches", [3, 60, 2000])
def test_no_other_lengths_leave_less_to_compute(batches):
    random = np.random.default_rng(batches)
    for _ in range(5):
        lengths = random.integers(1, 56, random.integers(1, 40)).tolist()
        found, ends = choose_lengths(lengths, 3, batches), range(8, 57, 8)
        others = [each for count in range(1, MOST_LENGTHS + 1) for each in itertools.combinations(ends, count)
                  if each[-1] >= max(lengths)]
        assert positions(lengths, 3, found, batches) == min(positions(lengths, 3, each, batches) for each in others)


def test_lengths_are_few_and_hold_the_longest():
    lengths = np.random.default_rng(0).lognormal(5.5, 1, 5000).astype(int).tolist()
    found = choose_lengths(lengths, 8, 10**6)
    assert len(found) == MOST_LENGTHS
    assert found[-1] - 8 < max(lengths) <= found[-1]
    assert found == sorted(size for size in found if size % 8 == 0)
    assert choose_lengths([5, 9], 1) == [16]  # too few to compile another
    assert choose_lengths([], 8) == [8]
    batch = pad([row.columns() for row in ROWS[:4]], [8, 16, 24])
    assert batch["tokens"].shape == (4, 8)


def test_a_ladder_holds_rows_of_any_length_to_its_longest():
    assert ladder(2048) == [64, 128, 256, 512, 1024, 2048]
    assert (ladder(100), ladder(64), ladder(3)) == ([56, 104], [64], [8])
    assert lengthened([16, 40], 300) == [16, 40, 80, 160, 304]
    assert lengthened([16, 40], 40) == [16, 40]


def test_in_order_gives_every_row_once():
    found = in_order(ROWS, batch_size=7)
    assert {len(batch["tokens"]) for batch in found} == {7}
    assert [segment for batch in found for segment in segments(batch)] == [
        (tuple(row.tokens), tuple(row.loss_mask)) for row in ROWS]
    assert add_rows(found[0], 7) is found[0]


def test_wider_batches_hold_the_same_rows():
    batch = pad([row.columns() for row in ROWS[:4]], [8]) | {"counts": np.ones((4, 3), np.int32)}
    wide = widen(batch, 24)
    assert wide["tokens"].shape == (4, 24)
    assert wide["counts"].shape == (4, 3)
    assert list(segments(wide)) == list(segments(batch))


def test_rows_in_order_are_padded_to_what_suits_their_batches():
    some = rows([5, 60, 60, 60] * 20 + [5, 5, 5, 5] * 20)
    assert {batch["tokens"].shape[1] for batch in in_order(some, batch_size=4)} == {8, 64}
    assert {batch["tokens"].shape[1] for batch in in_order(some, batch_size=8, sizes=[100])} == {100}
    assert in_order([], batch_size=2) == []
