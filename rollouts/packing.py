"""Micro-batches of a batch of rollouts: bounded in tokens, of at most six shapes in a run.

A shape holds prompts of up to P tokens (one of two lengths) and what follows them of up to C (one of three). Where a
group's prompt and C tokens of at least two of its members fit into the budget, the members share the prompt, which is
computed once (RowLayout); else a row is a whole episode. The longest episodes choose the shape of a micro-batch, and
shorter ones fill it up, so the last micro-batch alone is not full.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from batch import MicroBatch, RowLayout
from sharding.layout import Layout
from sharding.placement import fetch, put_rows

MIN_SAVING = 64
"""tokens a row that must be saved for a shape more"""
ON_HOST = ("prompt_length", "rewards")
"""columns that no objective takes"""


class Shape(NamedTuple):
    """Of a micro-batch; `slots` times `rows` rows."""

    prompt_length: int
    """P"""
    length: int
    """C"""
    rows: int
    """members of one group that share their prompt; 1 where none does"""
    slots: int

    @property
    def row_layout(self) -> RowLayout:
        return RowLayout(self.prompt_length, self.rows) if self.rows > 1 else RowLayout()

    def holds(self, prompt_length: int, length: int) -> bool:
        """Whether an episode fits."""
        if self.rows == 1:
            return prompt_length + length <= self.prompt_length + self.length
        return prompt_length <= self.prompt_length and length <= self.length


class Part(NamedTuple):
    """The rows of a batch that a micro-batch has, -1 where it has none."""

    rows: np.ndarray
    shape: Shape


def plan_shapes(prompt_lengths: Sequence[int], max_new_tokens: int, group_size: int, num_groups: int, budget: int,
                ways: int = 1) -> list[Shape]:
    """The shapes of a run, small ones first: for prompts of these lengths, `num_groups` groups an update, `budget`
    tokens of a micro-batch on each of `ways` devices that rows are split over (one episode at least)."""
    prompts, lengths = prompt_sizes(prompt_lengths), completion_sizes(max_new_tokens)
    shapes = [_shape(prompt, length, group_size, num_groups, budget, ways)
              for prompt, length in itertools.product(prompts, lengths)]
    return sorted(shapes, key=lambda shape: (shape.prompt_length + shape.length, shape.length))


def num_parts(shapes: Sequence[Shape], group_size: int, num_groups: int) -> int:
    """Micro-batches of the longest episodes of `num_groups` groups whose members have one prompt, the most of all."""
    return max(-(-num_groups * -(-group_size // shape.rows) // shape.slots) for shape in shapes)


def prompt_sizes(lengths: Sequence[int]) -> list[int]:
    """The length of the longest prompt, and the one before it that leaves the least padding in all, if that is worth
    being compiled; multiples of 8."""
    rounded = np.sort([_round(length) for length in lengths])
    candidates = np.unique(rounded)
    counts = np.searchsorted(rounded, candidates, side="right")
    padded = counts * candidates + (len(rounded) - counts) * candidates[-1]
    best = int(candidates[np.argmin(padded)])
    return [best, int(candidates[-1])] if candidates[-1] - best >= MIN_SAVING else [int(candidates[-1])]


def completion_sizes(max_new_tokens: int) -> list[int]:
    """All, a half and a quarter of that, as far as a shape of its own is worth being compiled; multiples of 8."""
    lengths = [_round(-(-max_new_tokens // part)) for part in (4, 2, 1)]
    return [length for length in lengths[:2] if length >= MIN_SAVING] + lengths[2:]


def _round(length: int) -> int:
    return -(-length // 8) * 8


def _shape(prompt: int, length: int, group_size: int, num_groups: int, budget: int, ways: int) -> Shape:
    shared = min(group_size, (budget - prompt) // length)
    if shared > 1:
        rows = -(-group_size // -(-group_size // shared))  # parts of even size
        parts, size = num_groups * -(-group_size // rows), prompt + rows * length
    else:
        rows, parts, size = 1, num_groups * group_size, prompt + length
    return Shape(prompt, length, rows, _slots(-(-parts // ways), max(1, budget // size)) * ways)


def _slots(parts: int, room: int) -> int:
    """Of micro-batches that hold all parts with as little room to spare as can be."""
    return -(-parts // -(-parts // room))


class _Row(NamedTuple):
    number: int
    """in the batch"""
    prompt_length: int
    length: int
    """tokens after the prompt"""


def pack(batch: dict[str, np.ndarray], group_size: int, shapes: Sequence[Shape]) -> list[Part]:
    """Which rows of a batch go together; every row once. The same batch gives the same parts."""
    waiting, parts = _same_prompts(batch, group_size), []
    while waiting:
        shape = max((_smallest(shapes, rows[0]) for rows in waiting), key=shapes.index)
        slots: list[list[_Row]] = []
        for rows in waiting:
            slots += _take(rows, shape, shape.slots - len(slots))
        numbers = np.full((shape.slots, shape.rows), -1)
        for slot, taken in enumerate(slots):
            numbers[slot, : len(taken)] = [row.number for row in taken]
        parts.append(Part(numbers.ravel(), shape))
        waiting = _longest_first(waiting)
    return parts


def _same_prompts(batch: dict[str, np.ndarray], group_size: int) -> list[list[_Row]]:
    """Rows of each group whose prompts are the same tokens (an environment may open each member's conversation anew),
    the longest first; of all of them the longest first."""
    found: dict[tuple[int, bytes], list[_Row]] = {}
    total = np.sum(batch["segment_ids"] != 0, axis=1).tolist()
    for number, prompt_length in enumerate(batch["prompt_length"].tolist()):
        row = _Row(number, prompt_length, total[number] - prompt_length)
        prompt = batch["tokens"][number, :prompt_length].tobytes()
        found.setdefault((number // group_size, prompt), []).append(row)
    return _longest_first([sorted(rows, key=lambda row: -row.length) for rows in found.values()])


def _longest_first(waiting: Sequence[list[_Row]]) -> list[list[_Row]]:
    return sorted((rows for rows in waiting if rows), key=lambda rows: -rows[0].length)


def _smallest(shapes: Sequence[Shape], row: _Row) -> Shape:
    return next(shape for shape in shapes if shape.holds(row.prompt_length, row.length))


def _take(rows: list[_Row], shape: Shape, slots: int) -> list[list[_Row]]:
    """Up to so many slots of rows that fit, which are taken off `rows`."""
    fitting = [row for row in rows if shape.holds(row.prompt_length, row.length)][: slots * shape.rows]
    rows[:] = [row for row in rows if row not in fitting]
    return [fitting[start : start + shape.rows] for start in range(0, len(fitting), shape.rows)]


def pack_minibatches(batch: dict[str, np.ndarray], count: int, group_size: int,
                     shapes: Sequence[Shape]) -> list[list[Part]]:
    """The parts of each of `count` mini-batches, which have as many groups, in their order."""
    size = len(batch["tokens"]) // count
    packed = [pack({name: batch[name][start : start + size] for name in ("tokens", "segment_ids", "prompt_length")},
                   group_size, shapes) for start in range(0, count * size, size)]
    return [[part._replace(rows=np.where(part.rows < 0, -1, part.rows + number * size)) for part in parts]
            for number, parts in enumerate(packed)]


def unused(shapes: Sequence[Shape], parts: Sequence[Sequence[Part]]) -> list[Part]:
    """A part without any row of each shape that these parts do not have."""
    used = {part.shape for part in itertools.chain(*parts)}
    return [Part(np.full(shape.slots * shape.rows, -1), shape) for shape in shapes if shape not in used]


def put(batch: dict[str, np.ndarray], part: Part, layout: Layout) -> MicroBatch:
    """A part of these columns, which are the same in all processes, on the devices, split by rows."""
    lengths = batch["prompt_length"]
    columns = {name: put_rows(lay(column, part, lengths), layout) for name, column in batch.items()
               if name not in ON_HOST}
    return MicroBatch(columns, part.shape.row_layout)


def gather(columns: Sequence[Sequence[jax.Array]], parts: Sequence[Sequence[Part]],
           batch: dict[str, np.ndarray]) -> np.ndarray:
    """What micro-batches have at their tokens, [B, T] each, as a column [N, T] of the batch."""
    gathered = np.zeros(batch["tokens"].shape, np.float32)
    for column, part in zip(itertools.chain(*columns), itertools.chain(*parts), strict=True):
        at, inside = _places(part, batch["prompt_length"], gathered.shape[1])
        rows = np.broadcast_to(part.rows[:, None], at.shape)
        gathered[rows[inside], at[inside]] = fetch(column)[inside]
    return gathered


def lay(column: np.ndarray, part: Part, prompt_lengths: np.ndarray) -> np.ndarray:
    """A column [N] or [N, T] of the batch as the micro-batch has it, 0 where it has no row or no token."""
    if column.ndim == 1:
        return np.where(part.rows >= 0, column[part.rows], 0).astype(column.dtype)
    at, inside = _places(part, prompt_lengths, column.shape[1])
    return np.where(inside, column[part.rows[:, None], np.clip(at, 0, column.shape[1] - 1)], 0).astype(column.dtype)


def _places(part: Part, prompt_lengths: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """[B, T] each: the batch's column, of `length` ones, that stands at each place of the micro-batch, and whether
    there is one."""
    shape = part.shape
    at = np.tile(np.arange(shape.prompt_length + shape.length), (len(part.rows), 1))
    if shape.rows > 1:
        at -= (shape.prompt_length - prompt_lengths[part.rows])[:, None]
    return at, (part.rows >= 0)[:, None] & (at >= 0) & (at < length)
