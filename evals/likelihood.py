"""How likely continuations are: those of one context are scored beside each other, at the cost of one context."""

import functools
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from batch import Batch, bucket_length, choose_lengths
from models.scoring import score_completions
from models.transformer import Transformer
from sharding.layout import Layout, check_layout
from sharding.placement import Placement

AT_A_TIME = 8192
"""tokens, on each device"""
TOGETHER = 8
"""continuations of a context that are scored beside each other, at most"""

Pair = tuple[Sequence[int], Sequence[int]]
"""ids of a context, one at least, and of its continuation"""
Likelihood = tuple[float, bool]
"""log p(continuation | context), and whether no token was likelier than any of its own"""


class Shape(NamedTuple):
    """Of a batch: contexts end at column `width`, `group` continuations of `length` tokens follow each."""

    contexts: int
    group: int
    width: int
    length: int


def make_scorer(model: Transformer, layout: Layout) -> Callable[..., Iterator[tuple[int, Likelihood]]]:
    """(variables, pairs[, wanted]) -> (number of a pair, its Likelihood), batch by batch, the longest first. Every
    process of a run gets all of them. With `wanted` numbers alone these are scored, in the batches that they have among
    all: what an evaluation that goes on lacks gets the bits that it would have had."""
    check_layout(model, layout.sharding())

    @functools.partial(jax.jit, static_argnums=(2, 3), out_shardings=layout.sharding())
    def compute(variables: Any, batch: Any, group: int, width: int) -> Any:
        scores = score_completions(model, variables, batch, group, width)
        return scores.logps[:, width:], scores.greedy[:, width:]

    def score(variables: Any, pairs: Sequence[Pair], wanted: Container[int] | None = None,
              ) -> Iterator[tuple[int, Likelihood]]:
        wanted = range(len(pairs)) if wanted is None else wanted
        for contexts, shape in batches(pairs, layout.ways("batch")):
            if not any(number in wanted for numbers in contexts for number in numbers):
                continue
            placement = Placement(shape.contexts, None, layout, shape.group)
            put = placement.put(lay(pairs, contexts, shape), list(range(shape.contexts)))
            scores = jax.device_get(compute(variables, put, shape.group, shape.width))
            for place, numbers in enumerate(contexts):
                for member, number in enumerate(numbers):
                    logps, greedy = (each[place * shape.group + member, : len(pairs[number][1])] for each in scores)
                    if number in wanted:
                        yield number, (float(logps.sum(dtype=np.float64)), bool(greedy.all()))

    return score


def batches(pairs: Sequence[Pair], shards: int) -> Iterator[tuple[list[list[int]], Shape]]:
    """(numbers of the pairs of each context, shape) of each batch; few shapes, since each is compiled."""
    together: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(pairs):
        together.setdefault(tuple(context), []).append(number)
    contexts = [numbers[start : start + TOGETHER] for numbers in together.values()
                for start in range(0, len(numbers), TOGETHER)]
    waiting = sorted(contexts, key=lambda numbers: (-_group(numbers), -_longest(pairs, numbers)))
    shape_of = functools.partial(_shape, pairs, _sizes(pairs, waiting, shards), shards)
    while waiting:
        group, most = _group(waiting[0]), shape_of(waiting[:1]).contexts
        now = [numbers for numbers in waiting[:most] if _group(numbers) == group]
        shape = shape_of(now)
        now, waiting = now[: shape.contexts], waiting[min(len(now), shape.contexts) :]
        yield now, shape


def lay(pairs: Sequence[Pair], contexts: Sequence[Sequence[int]], shape: Shape) -> Batch:
    """Rows [contexts * group, width + length] as models.scoring.score_completions takes them."""
    rows, length = shape.contexts * shape.group, shape.width + shape.length
    batch = {name: np.zeros((rows, length), np.int32) for name in ("tokens", "positions", "segment_ids")}
    for place, numbers in enumerate(contexts):
        for row, number in enumerate(numbers, place * shape.group):
            tokens = [*pairs[number][0], *pairs[number][1]]
            at = slice(shape.width - len(pairs[number][0]), shape.width + len(pairs[number][1]))
            batch["tokens"][row, at], batch["positions"][row, at], batch["segment_ids"][row, at] = (
                tokens, range(len(tokens)), 1)
    return batch


def _group(numbers: Sequence[int]) -> int:
    """1, 2, 4 or 8."""
    return 1 << (len(numbers) - 1).bit_length()


def _longest(pairs: Sequence[Pair], numbers: Sequence[int]) -> int:
    return sum(_parts(pairs, numbers))


def _parts(pairs: Sequence[Pair], numbers: Sequence[int]) -> tuple[int, int]:
    """Tokens of a context, and of the longest of its continuations."""
    return len(pairs[numbers[0]][0]), max(len(pairs[number][1]) for number in numbers)


def _sizes(pairs: Sequence[Pair], contexts: Sequence[Sequence[int]], shards: int) -> list[list[int]]:
    """The lengths that contexts, and those that continuations, are padded to."""
    total = sum(width + _group(numbers) * length for numbers in contexts for width, length in [_parts(pairs, numbers)])
    at_a_time = max(1, AT_A_TIME * len(contexts) // max(1, total)) * shards  # on average
    return [choose_lengths(each, at_a_time) for each in zip(*(_parts(pairs, numbers) for numbers in contexts))]


def _shape(pairs: Sequence[Pair], sizes: Sequence[Sequence[int]], shards: int,
           contexts: Sequence[Sequence[int]]) -> Shape:
    """Of a batch of such contexts, as many as AT_A_TIME leaves room for."""
    parts, group = zip(*(_parts(pairs, numbers) for numbers in contexts)), _group(contexts[0])
    width, length = (bucket_length(max(each), fitting) for each, fitting in zip(parts, sizes))
    return Shape(max(1, AT_A_TIME // (width + group * length)) * shards, group, width, length)
