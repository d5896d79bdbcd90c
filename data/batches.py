"""Streams of training rows to batches of explicit [B, T] arrays, padded or packed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from batch import Batch, ladder, pad
from data.reading import count_columns, part_columns
from data.streams import StreamReader, Streams


class TrainingBatches:
    """Endless batches of some rows of the global batch: `rows`, those that this process needs; where a record becomes
    several rows (a pair), these are the numbers of records.

    `position` is where their streams stand: {row: state}, for JSON. `start` is such a position of all rows, or None for
    the beginning. Any host, and any number of hosts, can go on from it.
    """

    def __init__(self, streams: Streams, rows: Sequence[int], workers: int = 0, start: Sequence[Any] | None = None):
        self.rows = list(rows)
        self._columns = streams.encoder.columns
        self._sizes = (streams.lengths or ladder(streams.length)) if streams.packing == "none" else None
        self._reader = StreamReader(streams, self.rows, workers, start and [start[row] for row in self.rows])

    def __next__(self) -> Batch:
        rows = next(self._reader)
        if self._sizes is None:
            return stack_packed(rows, self._columns)
        return pad([part for row in rows for part in part_columns(row)], self._sizes)

    def position(self) -> dict[int, Any]:
        return dict(zip(self.rows, self._reader.states, strict=True))

    def close(self) -> None:
        self._reader.close()


def stack_packed(rows: Sequence[Any], columns: Sequence[str] = ()) -> Batch:
    """Grain's packed rows in this project's names; Grain numbers segments from 1 and pads with 0, as we do. Numbers of
    the packed rows, `columns`, stand at each of their tokens.

    A segment that begins in the middle of a row that was split is no target at its first token: nothing predicts it.
    """
    def stack(name: str, dtype: Any) -> np.ndarray:
        return np.stack([row[name] for row in rows]).astype(dtype)

    positions = stack("tokens_positions", np.int32)
    counts = [count_columns(row["counts"]) for row in rows]
    return {"tokens": stack("tokens", np.int32), "positions": positions,
            "segment_ids": stack("tokens_segment_ids", np.int32),
            "loss_mask": stack("loss_mask", np.float32) * (positions > 0),
            **{name: stack(name, np.float32) for name in columns},
            **{name: np.stack([count[name] for count in counts]) for name in counts[0]}}
