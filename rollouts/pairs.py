"""Pairs of groups of episodes: the best answer to a prompt against the worst."""

from collections.abc import Sequence

import numpy as np

from batch import Row
from rollouts.episodes import Episode, Group, rewards_of


def best_and_worst(groups: Sequence[Group]) -> np.ndarray:
    """The members [P, 2] of each group that have its largest and its smallest reward, the first of equals."""
    rewards = rewards_of(groups)
    largest, smallest = np.nan_to_num(rewards, nan=-np.inf), np.nan_to_num(rewards, nan=np.inf)
    return np.stack([largest.argmax(axis=1), smallest.argmin(axis=1)], axis=1)


def to_rows(groups: Sequence[Group], members: np.ndarray, columns: Sequence[str] = ()) -> list[Row]:
    """Two rows a group, as objectives.pairs has them, whose targets are what the policy drew, with `columns` of the
    prompts' rows. A group whose rewards do not differ has no targets, and counts for nothing."""
    return [_row(group.episodes[member], group, columns)
            for group, pair in zip(groups, members.tolist(), strict=True) for member in pair]


def _row(episode: Episode, group: Group, columns: Sequence[str]) -> Row:
    mask = np.zeros(len(episode.tokens), np.float32)
    mask[episode.prompt_length :] = episode.sampled
    return Row(np.asarray(episode.tokens, np.int32), mask * np.float32(group.has_spread),
               {name: group.prompt.columns[name] for name in columns})


def signs(groups: Sequence[Group], members: np.ndarray) -> np.ndarray:
    """1 for each episode that is chosen, -1 for each that is rejected, 0 for all others [N]."""
    found = np.zeros((len(groups), len(groups[0].episodes)))
    for row, group, (chosen, rejected) in zip(found, groups, members.tolist(), strict=True):
        if group.has_spread:
            row[chosen], row[rejected] = 1, -1
    return found.ravel()
