"""Mixing: how many rows of each source there are, and in what order; random by a seed, the same whatever runs it."""

import array
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from curation.stages import Drop, Row, Stage
from errors import InputError


def mix(*, proportions: dict[str, float] | None = None, caps: dict[str, int] | None = None,
        max_rows: int | None = None, seed: int = 0) -> Stage:
    """At most `caps` rows of a source, and of all sources as many as give these proportions with the most rows in all,
    `max_rows` at the most. Which ones is drawn by the seed; a row's luck is its own, so more rows keep those of fewer.
    Memory: 24 bytes a row.
    """
    _check(proportions, caps, max_rows)

    def stage(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        rows = rows if isinstance(rows, Sequence) else list(rows)
        there, numbers, draws = Counter(), array.array("l"), array.array("Q")
        for row in rows:
            there[row.source] += 1
            numbers.append(list(there).index(row.source))
            draws.append(_draw(seed, row.source, row.index, row.sample))
        sizes = mixed_sizes(there, proportions, caps or {}, max_rows)
        ranks = _ranks(np.asarray(numbers), np.asarray(draws))
        for row, rank in zip(rows, ranks):
            size = sizes[row.source]
            yield row if rank < size else Drop(row, f"{size} rows of its source are enough")

    return stage


def shuffle(*, seed: int = 0) -> Stage:
    """All rows in another order, by the seed; completions of a prompt stay together."""

    def stage(rows: Iterable[Row]) -> Iterator[Row]:
        rows = rows if isinstance(rows, Sequence) else list(rows)
        draws = array.array("Q", (_draw(seed, row.source, row.index) for row in rows))
        order = np.argsort(np.asarray(draws), kind="stable")
        return (rows[int(number)] for number in order)

    return stage


def mixed_sizes(there: Mapping[str, int], proportions: Mapping[str, float] | None, caps: Mapping[str, int],
                max_rows: int | None) -> dict[str, int]:
    """Rows of each source. Raises InputError for a source that is not there, or that has no proportion."""
    for name in (*caps, *(proportions or ())):
        if name not in there:
            raise InputError(f"no row is of the source {name!r}; there are {', '.join(there)}")
    left = {source: min(count, caps.get(source, count)) for source, count in there.items()}
    if proportions is None:
        return left if max_rows is None else _shares(left, min(max_rows, sum(left.values())), left)
    missing = next((source for source in there if source not in proportions), None)
    if missing is not None:
        raise InputError(f"source {missing} has no proportion; give it one, 0 to leave it out")
    whole = sum(proportions.values())
    limit = min(left[source] * whole / share for source, share in proportions.items() if share)
    total = math.floor(min(limit, math.inf if max_rows is None else max_rows) + 1e-9)
    return _shares(proportions, total, left)


def _shares(weights: Mapping[str, float], total: int, left: Mapping[str, int]) -> dict[str, int]:
    """`total` split by the weights, the largest remainders rounded up, none above what is left."""
    whole = sum(weights.values())
    exact = {source: total * weight / whole for source, weight in weights.items()}
    sizes = {source: min(left[source], math.floor(size + 1e-9)) for source, size in exact.items()}
    for source in sorted(exact, key=lambda source: sizes[source] - exact[source])[: total - sum(sizes.values())]:
        sizes[source] = min(left[source], sizes[source] + 1)
    return sizes


def _ranks(numbers: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The place of each row among those of its source, whose number it has, by their draws."""
    order = np.lexsort((draws, numbers))
    ranks = np.empty(len(order), np.int64)
    starts = np.searchsorted(numbers[order], np.arange(numbers.max(initial=-1) + 1))
    ranks[order] = np.arange(len(order)) - starts[numbers[order]]
    return ranks


def _draw(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(map(str, parts)).encode(errors="backslashreplace")).digest()[:8])


def _check(proportions: Mapping[str, float] | None, caps: Mapping[str, int] | None, max_rows: int | None) -> None:
    """Raises InputError for numbers that make no sense."""
    shares = [1.0] if proportions is None else list(proportions.values())
    if not any(shares) or min(shares) < 0:
        raise InputError(f"proportions are {proportions}; they take 0 or more, and one that is not 0")
    if any(cap < 1 for cap in (caps or {}).values()) or (max_rows is not None and max_rows < 1):
        raise InputError("caps and max_rows take 1 or more")
