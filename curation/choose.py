"""Choosing among the completions of a prompt by their rewards: the best, pairs, labels; rows of a prompt come together.

A completion whose reward failed, or that has none, is dropped and never chosen.
"""

import itertools
from collections.abc import Iterable, Iterator

from curation.stages import Drop, Row, Stage
from errors import InputError


def best_of(*, keep: int = 1) -> Stage:
    """The `keep` completions of the highest reward of each prompt; of equal ones the first."""
    if keep < 1:
        raise InputError(f"keep is {keep}; it takes 1 or more")

    def stage(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        for group in groups(rows):
            ranked = sorted(graded(group), key=lambda row: -row.notes["reward"])
            chosen = {row.sample for row in ranked[:keep]}
            for row in group:
                yield row if row.sample in chosen else _passed_over(row, ranked[0] if ranked else None)

    return stage


def groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The completions of each prompt."""
    return (list(group) for _, group in itertools.groupby(rows, key=lambda row: row.place))


def graded(group: Iterable[Row]) -> list[Row]:
    """Those that have a reward. Raises InputError for one that was never graded."""
    return [row for row in group if reward_of(row) is not None]


def reward_of(row: Row) -> float | None:
    """None where a reward failed or left the row out. Raises InputError where there was none to be asked."""
    if "reward" not in row.notes:
        raise InputError(f"{row.source} row {row.index} has no reward; put a stage sample with rewards before this one")
    return row.notes["reward"]


def _passed_over(row: Row, best: Row | None) -> Drop:
    if reward_of(row) is None:
        return Drop(row, f"no reward: {row.notes.get('failed') or 'left out by the reward'}")
    return Drop(row, f"reward {row.notes['reward']:g} beside {best.notes['reward']:g}", (*best.place, best.sample))
