"""Rows to batches of explicit [B, T] arrays: streams of training rows, padded or packed, and rows in their order."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.encode import Row
from data.reading import part_columns
from data.streams import StreamReader, Streams
from errors import InputError

Batch = dict[str, np.ndarray]
"""tokens, positions, segment_ids int32 and loss_mask float32, all [B, T]; segment 0 is padding. Further columns are
float32 [B, T], or [B] for what is said of a row. Training batches have counts int32 [B, 3] too: data.reading.COUNTS"""


class TrainingBatches:
    """Endless batches of some rows of the global batch: `rows`, those that this process needs; where a record becomes
    several rows (a pair), these are the numbers of records.

    `position` is where their streams stand: {row: state}, for JSON. `start` is such a position of all rows, or None for
    the beginning. Any host, and any number of hosts, can go on from it.
    """

    def __init__(self, streams: Streams, rows: Sequence[int], workers: int = 0, start: Sequence[Any] | None = None):
        self.rows = list(rows)
        self._sizes = buckets(streams.length) if streams.packing == "none" else None
        self._reader = StreamReader(streams, self.rows, workers, start and [start[row] for row in self.rows])

    def __next__(self) -> Batch:
        rows = next(self._reader)
        if self._sizes is None:
            return stack_packed(rows)
        return pad([part for row in rows for part in part_columns(row)], self._sizes)

    def position(self) -> dict[int, Any]:
        return dict(zip(self.rows, self._reader.states, strict=True))

    def close(self) -> None:
        self._reader.close()


def in_order(rows: Sequence[Row], *, batch_size: int, length: int) -> list[Batch]:
    """Every row once, in its order, padded: for evaluation and scoring. The last batch is filled with padding."""
    sizes = buckets(length)
    groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [add_rows(pad([row.columns() for row in group], sizes), batch_size) for group in groups]


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
    """Stacks rows (dicts of tokens, loss_mask, ...), padded at the end to the smallest size that holds them all."""
    other = next((row for row in rows if row.keys() != rows[0].keys()), rows[0])
    if other is not rows[0]:
        raise InputError(f"some rows have {', '.join(sorted(rows[0].keys() ^ other.keys()))} and others have not; "
                         f"give it to all or to none")
    longest = max(len(row["tokens"]) for row in rows)
    length = next(size for size in sizes if size >= longest)

    def stack(name: str) -> np.ndarray:
        if name == "counts" or not rows[0][name].ndim:
            return np.stack([row[name] for row in rows])
        return np.stack([np.pad(row[name], (0, length - len(row[name]))) for row in rows])

    segment_ids = np.stack([np.arange(length) < len(row["tokens"]) for row in rows]).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), segment_ids.shape).copy()
    return {name: stack(name) for name in rows[0]} | {"positions": positions, "segment_ids": segment_ids}


def stack_packed(rows: Sequence[Any]) -> Batch:
    """Grain's packed rows in this project's names; Grain numbers segments from 1 and pads with 0, as we do.

    A segment that begins in the middle of a row that was split is no target at its first token: nothing predicts it.
    """
    def stack(name: str, dtype: Any) -> np.ndarray:
        return np.stack([row[name] for row in rows]).astype(dtype)

    positions = stack("tokens_positions", np.int32)
    return {"tokens": stack("tokens", np.int32), "positions": positions,
            "segment_ids": stack("tokens_segment_ids", np.int32),
            "loss_mask": stack("loss_mask", np.float32) * (positions > 0),
            "counts": np.stack([row["counts"].sum(0) for row in rows])}


def add_rows(batch: Batch, rows: int) -> Batch:
    """Fills a batch up to `rows` with empty rows (segment 0, mask 0), which count for nothing."""
    fill = rows - len(batch["tokens"])
    if not fill:
        return batch
    return {name: np.pad(array, [(0, fill)] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()}


def widen(batch: Batch, length: int) -> Batch:
    """Pads [B, T] arrays at the end to `length` positions."""
    shape = batch["tokens"].shape
    more = ((0, 0), (0, length - shape[1]))
    return {name: np.pad(array, more) if array.shape == shape else array for name, array in batch.items()}
