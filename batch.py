"""What a batch is: explicit [B, T] columns, made of rows by padding; and what follows from its columns alone.

`tokens`, `positions` (restarting in every segment) and `segment_ids` (0 is padding) int32, `loss_mask` float32 (1 on
targets), all [B, T]: index t always speaks of token t. Where every row is one segment from column 0 on, and only there,
`row_length` int32 [B] says how many tokens it has. What an objective needs besides is a further column, float32
[B, T], or [B] for a number of the row. Training batches count what happened to rows that could not be taken as they
are in columns count/NAME, int32 [B]. Nothing is ever derived from a padding id.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from errors import InputError

Batch = dict[str, np.ndarray]

COUNT = "count/"
"""how the names of columns begin that are summed over a batch and taken by no objective"""


class Row(NamedTuple):
    """`tokens` int32 [T]; `loss_mask` float32 [T], 1 on targets. The first token is no target. `extra` are further
    columns for an objective: a number for the row (label, margin), or float32 [T] (ref_logps). `events` are what
    happened to it on the way from its record, counted by name (data.reading.COUNTS)."""

    tokens: np.ndarray
    loss_mask: np.ndarray
    extra: Mapping[str, Any] = MappingProxyType({})
    events: Mapping[str, int] = MappingProxyType({})

    def columns(self) -> dict[str, np.ndarray]:
        """All of it by name: [T] or, for the row's numbers, []."""
        extra = {name: np.asarray(value, np.float32) for name, value in self.extra.items()}
        return {"tokens": self.tokens, "loss_mask": self.loss_mask} | extra

    def cut(self, length: int) -> "Row":
        """The row's first `length` tokens."""
        extra = {name: value[:length] if np.ndim(value) else value for name, value in self.extra.items()}
        return Row(self.tokens[:length], self.loss_mask[:length], extra, self.events)

    def spread(self) -> "Row":
        """The row with its numbers at each of its tokens, as a packed row needs them."""
        length = len(self.tokens)
        extra = {name: np.broadcast_to(np.asarray(value, np.float32), length) for name, value in self.extra.items()}
        return self._replace(extra=extra)


class RowLayout(NamedTuple):
    """How the rows of a micro-batch lie; static to the compiler."""

    prompt_length: int = 0
    group_size: int = 1
    """1: rows as usual, from column 0. Above: each so many adjacent rows share their prompt, which ends at column
    `prompt_length`, padded in front; completions begin there (models.scoring.score_completions)."""


class MicroBatch(NamedTuple):
    """A part of a batch, of a shape and row layout of its own."""

    columns: dict[str, Any]
    """[B, T], or [B] for numbers of rows"""
    row_layout: RowLayout = RowLayout()


MOST_LENGTHS = 6
"""that rows are padded to: each is compiled once for every program that takes them"""
SHORTEST = 64
"""tokens of the shortest length, where lengths are not known beforehand"""
COMPILING = 8
"""batches of a length that take about as long to compute as the length takes to compile"""


def longest_row(rows: Sequence[Row]) -> int:
    """Tokens of the longest row; 0 without any."""
    return max((len(row.tokens) for row in rows), default=0)


def choose_lengths(lengths: Iterable[int], batch_size: int = 1, batches: int | None = None) -> list[int]:
    """The lengths, MOST_LENGTHS at the most, that batches of rows of these `lengths` are padded to, in order; a batch
    is of rows of like length, and there will be `batches` of them (None: as these rows make).

    They minimise the positions to compute, a length costing COMPILING batches of its own besides: over the lengths
    s_1 < ... < s_N that occur as the longest of a batch, of b_1, ..., b_N batches, by dynamic programming

        cost_k(n) = min over m < n of cost_{k-1}(m) + s_n (b_{m+1} + ... + b_n + COMPILING)
    """
    longest = np.sort(np.fromiter(lengths, np.int64))[::-1][::batch_size]
    sizes, counts = np.unique(_rounded(longest), return_counts=True)
    if not len(sizes):
        return [8]
    number = np.arange(len(sizes) + 1)
    before = np.concatenate([[0], np.cumsum(counts)]) * ((batches or len(longest)) / len(longest))
    step = np.concatenate([[0], sizes]) * (before - before[:, None] + COMPILING)  # [m, n]
    step = np.where(number[:, None] < number, step, np.inf)
    cost, chosen, found = np.where(number, np.inf, 0.0), [[]] * len(number), []
    for _ in range(MOST_LENGTHS):
        last = np.argmin(cost[:, None] + step, axis=0)
        cost = (cost[:, None] + step)[last, number]
        chosen = [[*chosen[m], n] for n, m in enumerate(last.tolist())]
        found.append((cost[-1], chosen[-1]))
    return [*sizes[np.asarray(min(found)[1]) - 1].tolist()[:-1], multiple_of_8(int(longest[0]))]


def _rounded(lengths: np.ndarray) -> np.ndarray:
    """Up to multiples of 8, and of a 32nd of the power of two below: few enough to be chosen among, by some 3 %."""
    steps = np.maximum(8, 2 ** (np.log2(np.maximum(lengths, 1)).astype(np.int64) - 5).clip(0))
    return -(-np.maximum(lengths, 1) // steps) * steps


def multiple_of_8(length: int) -> int:
    """The smallest one that holds `length`."""
    return max(8, -(-length // 8) * 8)


def ladder(longest: int) -> list[int]:
    """The lengths for rows of up to `longest` tokens that are not known beforehand: it, a half of it, a quarter and so
    on, down to SHORTEST or below. Those that come up are compiled."""
    lengths = [longest]
    while lengths[0] > SHORTEST:
        lengths.insert(0, -(-lengths[0] // 2))
    return [multiple_of_8(length) for length in lengths]


def lengthened(lengths: Sequence[int], longest: int) -> list[int]:
    """`lengths`, and as many twice as long as the one before as rows of `longest` tokens need, if there are such."""
    lengths = list(lengths)
    while lengths[-1] < longest:
        lengths.append(min(2 * lengths[-1], multiple_of_8(longest)))
    return lengths


def bucket_length(length: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes`, in order, that holds `length`."""
    return next(size for size in sizes if size >= length)


def pad(rows: Sequence[Mapping[str, np.ndarray]], sizes: Sequence[int]) -> Batch:
    """Stacks rows (columns by name, [T] or []), padded at the end to the smallest size that holds them all."""
    other = next((row for row in rows if row.keys() != rows[0].keys()), rows[0])
    if other is not rows[0]:
        raise InputError(f"some rows have {', '.join(sorted(rows[0].keys() ^ other.keys()))} and others have not; "
                         f"give it to all or to none")
    length = bucket_length(max(len(row["tokens"]) for row in rows), sizes)

    def stack(name: str) -> np.ndarray:
        if not rows[0][name].ndim:
            return np.stack([row[name] for row in rows])
        return np.stack([np.pad(row[name], (0, length - len(row[name]))) for row in rows])

    segment_ids = np.stack([np.arange(length) < len(row["tokens"]) for row in rows]).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), segment_ids.shape).copy()
    return {name: stack(name) for name in rows[0]} | {
        "positions": positions, "segment_ids": segment_ids,
        "row_length": np.array([len(row["tokens"]) for row in rows], np.int32)}


def in_order(rows: Sequence[Row], *, batch_size: int, sizes: Sequence[int] | None = None) -> list[Batch]:
    """Every row once, in its order, padded to `sizes`, by default those that suit these batches: for evaluation and
    scoring. The last batch is filled with padding."""
    groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    sizes = sizes or choose_lengths(map(longest_row, groups))
    return [add_rows(pad([row.columns() for row in group], sizes), batch_size) for group in groups]


def add_rows(batch: Batch, rows: int) -> Batch:
    """Fills a batch up to `rows` with empty rows (segment 0, mask 0), which count for nothing."""
    fill = rows - len(batch["tokens"])
    if not fill:
        return batch
    return {name: np.pad(array, [(0, fill)] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()}


def widen(batch: Batch, length: int) -> Batch:
    """Pads [B, T] arrays at the end to `length` positions."""
    shape = batch["tokens"].shape
    padding = ((0, 0), (0, length - shape[1]))
    return {name: np.pad(array, padding) if array.shape == shape else array for name, array in batch.items()}


def follows(segment_ids: Any) -> Any:
    """[B, T] -> bool [B, T], True where token t has a predecessor in its own segment: only there is one predicted."""
    import jax.numpy as jnp  # what makes batches, in worker processes, too, needs none

    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    return (segment_ids == before) & (segment_ids != 0)
