"""Padding and stacking: masks kept, few lengths, empty rows that count for nothing."""

import numpy as np
from tiny import rows

from batch import Row, add_rows, buckets, in_order, pad, used_often, widen

ROWS = rows(range(5, 29))


def segments(batch):
    """(tokens, mask) of every row inside a batch."""
    for at in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][at].max() + 1):
            inside = batch["segment_ids"][at] == segment
            assert batch["positions"][at, inside].tolist() == list(range(inside.sum()))
            yield tuple(batch["tokens"][at, inside]), tuple(batch["loss_mask"][at, inside])
        assert not batch["loss_mask"][at, batch["segment_ids"][at] == 0].any()


def test_buckets_are_few_and_hold_the_longest():
    assert buckets(284)[-1] == 288
    assert buckets(5) == [8]
    assert all(size % 8 == 0 for size in buckets(284))
    assert len(buckets(4096)) < 22
    batch = pad([row.columns() for row in ROWS[:4]], buckets(28))
    assert batch["tokens"].shape == (4, 16)


def test_in_order_gives_every_row_once():
    found = in_order(ROWS, batch_size=7, length=28)
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


def test_a_length_that_few_batches_have_is_padded_to_the_next_that_is_used():
    few = [Row(np.zeros(length, np.int32), np.zeros(length, np.float32)) for length in (5, 12, 30, 60, 100)]
    assert used_often(few, 2) == [32, 104]  # 30 to 104 is more than twice as much, 5 to 32 is one batch
    assert used_often(few[3:], 1) == [104]
    assert in_order([], batch_size=2, length=0, sizes=used_often([], 2)) == []
    many = few + [few[2]] * 80
    assert used_often(many, 8) == [32, buckets(100)[-1]]
    ordered = sorted(many, key=lambda row: -len(row.tokens))
    found = in_order(ordered, batch_size=8, length=100, sizes=used_often(many, 8))
    assert {batch["tokens"].shape[1] for batch in found} == {32, buckets(100)[-1]}
    assert sum(int((batch["segment_ids"] > 0).any(1).sum()) for batch in found) == len(many)
