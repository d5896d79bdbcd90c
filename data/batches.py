"""Rows to batches of explicit [B, T] arrays, through Grain: shuffled by seed, padded to a bucket or packed."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from data.encode import Row

Batch = dict[str, np.ndarray]
"""tokens, positions, segment_ids int32 and loss_mask float32, all [B, T]; segment 0 is padding"""


def training_batches(rows: Sequence[Row], *, batch_size: int, length: int, packing: bool,
                     seed: int) -> grain.IterDataset:
    """Endless batches of `batch_size` rows; every row once an epoch, each epoch in an order of its own.

    `length` is the longest row's (padded) or the packed row's. The iterator's get_state/set_state is the position.
    """
    fields = [row._asdict() for row in rows]
    dataset = grain.MapDataset.source(fields).seed(seed).shuffle().repeat()
    if not packing:
        sizes = buckets(length)
        return dataset.batch(batch_size, batch_fn=lambda batch: pad(batch, sizes)).to_iter_dataset()
    packed = grain.experimental.FirstFitPackIterDataset(
        dataset.to_iter_dataset(), length_struct={"tokens": length, "loss_mask": length},
        num_packing_bins=max(8, 2 * batch_size))
    return packed.map(from_packed).batch(batch_size)


def in_order(rows: Sequence[Row], *, batch_size: int, length: int) -> list[Batch]:
    """Every row once, in its order, padded: for evaluation and scoring. The last batch is filled with padding."""
    sizes = buckets(length)
    groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [add_rows(pad([row._asdict() for row in group], sizes), batch_size) for group in groups]


def buckets(length: int) -> list[int]:
    """Lengths that batches are padded to: `length`, 3/4 and 1/2 of it, and so on, rounded up to multiples of 8.

    Each is compiled once, so they are few, and the longest fits the data.
    """
    sizes, size = {max(8, -(-length // 8) * 8)}, length
    while size >= 16:
        sizes |= {-(-size * 3 // 32) * 8, -(-size // 16) * 8}
        size //= 2
    return sorted(sizes)


def pad(rows: Sequence[Any], sizes: Sequence[int]) -> Batch:
    """Stacks rows (dicts of tokens and loss_mask), padded at the end to the smallest size that holds them all."""
    longest = max(len(row["tokens"]) for row in rows)
    length = next(size for size in sizes if size >= longest)

    def stack(name: str, dtype: Any) -> np.ndarray:
        return np.stack([np.pad(row[name], (0, length - len(row[name]))) for row in rows]).astype(dtype)

    segment_ids = np.stack([np.arange(length) < len(row["tokens"]) for row in rows]).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), segment_ids.shape).copy()
    return {"tokens": stack("tokens", np.int32), "positions": positions, "segment_ids": segment_ids,
            "loss_mask": stack("loss_mask", np.float32)}


def from_packed(row: dict[str, np.ndarray]) -> Batch:
    """Grain's packed row in this project's names; Grain numbers segments from 1 and pads with 0, as we do."""
    return {"tokens": row["tokens"].astype(np.int32), "positions": row["tokens_positions"].astype(np.int32),
            "segment_ids": row["tokens_segment_ids"].astype(np.int32),
            "loss_mask": row["loss_mask"].astype(np.float32)}


def add_rows(batch: Batch, rows: int) -> Batch:
    """Fills a batch up to `rows` with empty rows (segment 0, mask 0), which count for nothing."""
    fill = rows - len(batch["tokens"])
    return {name: np.pad(array, ((0, fill), (0, 0))) for name, array in batch.items()} if fill else batch


def micro_batches(batch: Batch, count: int, shards: int) -> Batch:
    """[B, T] arrays to [count, b, T], b the smallest multiple of `shards` that holds all rows."""
    rows = len(batch["tokens"])
    each = -(-rows // (count * shards)) * shards
    filled = add_rows(batch, each * count)
    return {name: array.reshape(count, each, -1) for name, array in filled.items()}
