"""The best of a group against the worst: which two, their targets, and groups that make no pair."""

import numpy as np

from data.prompts import Prompt
from rollouts.episodes import Episode, Group
from rollouts.pairs import best_and_worst, signs, to_rows


def group(number, *rewards):
    episodes = [Episode([7, 8, place, 9, 3], 2, [True, False, True], [0.0] * 3, reward=reward)
                for place, reward in enumerate(rewards)]
    return Group(number, Prompt([7, 8], "a", {"weight": 0.5}), episodes)


GROUPS = [group(0, 0.2, 1.0, None, 1.0, -1.0), group(1, None, 0.5, 0.5, 0.5, 0.5), group(2, *[None] * 5),
          group(3, None, None, 2.0, 1.0, None)]


def test_the_first_of_equals_and_none_without_a_reward():
    members = best_and_worst(GROUPS)
    assert members[[0, 3]].tolist() == [[1, 4], [2, 3]]
    assert signs(GROUPS, members).reshape(4, 5).tolist() == [
        [0, 1, 0, 0, -1], [0] * 5, [0] * 5, [0, 0, 1, -1, 0]]


def test_rows_have_what_was_drawn_for_targets():
    rows = to_rows(GROUPS, best_and_worst(GROUPS), ["weight"])
    assert len(rows) == 8
    assert [row.tokens.tolist() for row in rows[:2]] == [[7, 8, 1, 9, 3], [7, 8, 4, 9, 3]]
    assert rows[0].loss_mask.tolist() == [0, 0, 1, 0, 1]
    assert rows[0].extra == {"weight": 0.5}
    assert [bool(row.loss_mask.any()) for row in rows] == [True] * 2 + [False] * 4 + [True] * 2
    assert {row.tokens.dtype for row in rows} == {np.dtype(np.int32)}
