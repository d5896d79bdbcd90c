"""VinePPO: values at cut points are unbiased, and advantages are their differences."""

import numpy as np
import pytest

from data.prompts import Prompt
from rollouts.drawing import Draw
from rollouts.episodes import Episode, Group
from rollouts.vine import cut_points, prefix_values, prefixes, vine

P, LENGTH = 0.3, 6
"""a token is 1 with this probability, else 0; an answer has so many; it is worth as many as it has ones"""


def episode(tokens, prompt_length=2):
    return Episode(tokens, prompt_length, reward=float(sum(tokens[prompt_length:])))


def drawer(random, samples):
    def collect(prompts, number, advance):
        for number, prompt in reversed(list(enumerate(prompts))):  # in any order
            rest = LENGTH - prompt.drawn
            drawn = (random.random((samples, rest)) < P).astype(int).tolist()
            yield Group(number, prompt, [episode([*prompt.tokens, *more]) for more in drawn])

    return collect


@pytest.fixture
def groups():
    answers = ([1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 1])
    return [Group(0, Prompt([7, 8], "a", {}), [episode([7, 8, *each]) for each in answers])]


def test_values_are_those_of_the_mdp_on_average(groups):
    random, draws, draw = np.random.default_rng(0), 3000, Draw(groups, groups, {"rollout": 1.0, "reward": 1.0})
    values = np.asarray([prefix_values(draw, 2, 8, drawer(random, 2))[1] for _ in range(draws)])
    exact = np.full((2, 8), np.nan)
    for row, each in enumerate(groups[0].episodes):
        for cut in (2, 4, 6):
            exact[row, cut] = sum(each.tokens[2:cut]) + P * (LENGTH + 2 - cut)
    np.testing.assert_array_equal(np.isnan(values[0]), np.isnan(exact))
    off = np.abs(values.mean(0) - exact) / (values.std(0) / draws**0.5)
    assert np.nanmax(off) < 4
    assert np.nanmin(values.std(0)) > 0.1


def test_a_beginning_that_episodes_share_is_asked_for_once(groups):
    assert [cut_points(each, 2) for each in groups[0].episodes] == [[2, 4, 6]] * 2
    asked = prefixes(groups, 2)
    assert [(each.tokens, each.drawn) for each in asked.values()] == [
        ([7, 8], 0), ([7, 8, 1, 0], 2), ([7, 8, 1, 0, 1, 1], 4), ([7, 8, 1, 0, 0, 0], 4)]


def test_advantages_are_differences_of_values(groups):
    values = np.full((2, 8), np.nan)
    values[0, [2, 4, 6]], values[1, [2, 6]] = (0.5, 0.7, 0.2), (0.5, 0.9)  # one had no verdict
    mask = np.zeros((2, 8))
    mask[:, 2:] = 1
    rewards = np.zeros((2, 8))
    rewards[0, 7], rewards[1, 7], rewards[1, 3] = 1.0, 0.0, -0.1
    batch = {"loss_mask": mask, "prefix_values": values, "token_rewards": rewards, "rewards": np.array([1.0, 0.0])}
    found = vine(groups, batch)["advantages"]
    np.testing.assert_allclose(found[0], [0, 0, 0.2, 0.2, -0.5, -0.5, 0.8, 0.8])
    np.testing.assert_allclose(found[1], [0, 0, *[0.3] * 4, -0.9, -0.9])
    unscored = vine(groups, batch | {"rewards": np.array([1.0, np.nan])})["advantages"]
    assert not unscored[1].any()
