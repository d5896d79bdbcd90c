"""The reward model's loss: against TRL's own code, its relation to DPO, and its invariances."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from invariance import answer_pairs, check_objective, evaluate, random_scores, same, take
from jaxtyping import Array
from preferences import assert_equals_trl, load

from objectives.dpo import configure
from objectives.reward_model import reward_model

CENTRED = functools.partial(reward_model, centering=0.01)


class Rewards(NamedTuple):
    rewards: Array


@pytest.fixture
def batch():
    return answer_pairs([(7, 5), (3, 9), (6, 6), (2, 4)]) | {"margin": jnp.repeat(jnp.asarray([0.5, 1.0, 0.2, 0.7]), 2)}


@pytest.fixture
def scores():
    return Rewards(jnp.asarray(np.random.default_rng(0).normal(size=8), jnp.float32))


@pytest.mark.parametrize(("case", "objective"), [("reward", reward_model), ("reward/centering", CENTRED)])
def test_equals_trl(case, objective):
    assert_equals_trl(objective, case, of="rewards")


def test_equals_trl_with_margins():
    assert_equals_trl(reward_model, "reward/margin", of="rewards", margin=load()["margin"])


@pytest.mark.parametrize("objective", [reward_model, CENTRED], ids=["plain", "centred"])
@pytest.mark.parametrize("margin", [True, False])
def test_invariances(objective, margin, batch, scores):
    batch = batch if margin else {name: column for name, column in batch.items() if name != "margin"}
    check_objective(objective, batch, scores, rows_per_unit=2)


def test_rewards_of_beta_times_the_log_ratio_make_it_dpo(batch):
    batch.pop("margin")
    policy = random_scores(batch)
    D = jnp.sum((policy.logps - batch["ref_logps"]) * batch["loss_mask"], axis=-1)
    dpo, ours = configure()(policy, batch), reward_model(Rewards(0.1 * D), batch)
    assert float(ours.total) == pytest.approx(float(dpo.total), rel=1e-6)
    for name, (total, _) in ours.metrics.items():
        assert float(total) == pytest.approx(float(dpo.metrics[name][0]), rel=1e-5)


def test_equal_rewards_are_ties_and_log_2(batch):
    batch.pop("margin")
    loss = reward_model(Rewards(jnp.ones(8)), batch)
    assert float(loss.total / loss.weight) == pytest.approx(np.log(2), rel=1e-6)
    assert [float(loss.metrics[f"rewards/{name}"][0]) for name in ("accuracies", "ties")] == [0, 4]


def test_pairs_that_fill_up_count_for_nothing_even_if_not_finite(batch, scores):
    gone = jnp.arange(8) >= 6
    spoiled = batch | {"loss_mask": batch["loss_mask"] * ~gone[:, None], "margin": batch["margin"] * ~gone}
    dirty = evaluate(CENTRED, Rewards(jnp.where(gone, jnp.nan, scores.rewards)), spoiled)
    clean = evaluate(CENTRED, *take((scores, batch), slice(6)))
    same((dirty[0], take(dirty[1], slice(6))), clean, "spoiled", 1e-6)
    assert not np.any(dirty[1].rewards[6:])
