"""Returns and advantages: verl's own numbers; an environment's words, lengths and limits."""

import functools
from pathlib import Path

import numpy as np
import pytest

from data.prompts import Prompt
from errors import InputError
from rollouts.baselines import BASELINES
from rollouts.credit import GAE, rewards_by_token, value_metrics
from rollouts.episodes import Group
from rollouts.returns import adaptive_lam, explained_variance, gae, last_drawn, token_rewards, whiten

G = 4


@functools.cache
def load():
    with np.load(Path(__file__).parents[1] / "fixtures" / "ppo.npz") as arrays:
        return dict(arrays)


def rollouts():
    """(groups, the fixture's batch); the KL at every token is the fixture's."""
    data = load()
    batch = {name: data[name] for name in ("loss_mask", "values", "rewards", "greedy_rewards")}
    batch |= {"old_logps": data["kl"], "ref_logps": np.zeros_like(data["kl"]),
              "truncated": np.zeros(len(data["rewards"]))}
    return [Group(number, Prompt([1], "a", {}), []) for number in range(len(batch["rewards"]) // G)], batch


@pytest.mark.parametrize(("name", "gamma", "lam"), [("1_95", 1.0, 0.95), ("9_8", 0.9, 0.8), ("1_1", 1.0, 1.0),
                                                    ("1_0", 1.0, 0.0)])
def test_advantages_and_returns_equal_verls(name, gamma, lam):
    data = load()
    rewards = token_rewards(data["rewards"], data["loss_mask"], data["kl"], 0.05)
    advantages = gae(rewards, data["values"], data["loss_mask"], gamma, lam)
    whitened, returns = data[f"gae_{name}/advantages"], data[f"gae_{name}/returns"]
    np.testing.assert_allclose(whiten(advantages, data["loss_mask"]), whitened, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose((advantages + data["values"]) * data["loss_mask"], returns, rtol=1e-6, atol=1e-9)


def test_the_credit_function_gives_them():
    groups, batch = rollouts()
    given = GAE(gamma=1.0, lam=0.95, critic_lam=1.0, beta=0.05)(groups, batch)
    np.testing.assert_allclose(given["advantages"], load()["gae_1_95/advantages"], atol=1e-6)
    np.testing.assert_allclose(given["returns"], load()["gae_1_1/returns"], atol=1e-5)  # decoupled
    assert {each.dtype for each in given.values()} == {np.dtype(np.float32)}
    batch["truncated"][5] = 1.0
    cut = GAE(gamma=1.0, lam=1.0, critic_lam=1.0, missing_end_penalty=2.0)(groups, batch)["returns"]
    drawn = batch["loss_mask"][5] != 0
    np.testing.assert_allclose(cut[5][drawn], batch["rewards"][5] - 2.0, atol=1e-6)


def test_values_that_are_not_finite_are_one_line():
    """But for those of what was not drawn."""
    groups, batch = rollouts()
    credit = GAE(gamma=1.0, lam=0.95, critic_lam=0.95)
    for value in (np.nan, np.inf):
        at_all = batch | {"values": np.where(batch["loss_mask"] == 0, value, batch["values"])}
        np.testing.assert_array_equal(credit(groups, at_all)["returns"], credit(groups, batch)["returns"])
        one = batch["values"].copy()
        one[tuple(np.argwhere(batch["loss_mask"])[0])] = value
        with pytest.raises(InputError, match="the critic gives values that are not finite, .* --critic.learning-rate"):
            credit(groups, batch | {"values": one})


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "reinforce_plus_plus_baseline", "opo", "remax"])
def test_baselines_equal_verls(name):
    groups, batch = rollouts()
    beta = 0.05 if name in ("reinforce_plus_plus", "remax") else 0.0
    found = BASELINES[name](groups, batch | {"token_rewards": rewards_by_token(batch, beta)})["advantages"]
    expected = load().get(name, load().get(f"{name}_1.0"))
    by_token = found if found.ndim > 1 else found[:, None] * batch["loss_mask"]
    np.testing.assert_allclose(by_token, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", BASELINES)
def test_what_has_no_reward_takes_no_part(name):
    """As if it were not there; nor does a whole group that has none."""
    groups, batch = rollouts()
    values = np.where(np.isnan(batch["values"]), 0, batch["values"])
    batch = batch | {"prefix_values": values}
    batch["rewards"] = batch["rewards"].copy()
    batch["rewards"][[1, 8, 9, 10, 11]] = np.nan
    batch["token_rewards"] = rewards_by_token(batch)
    found = BASELINES[name](groups, batch)["advantages"]
    assert np.isfinite(found).all()
    assert not found[[1, 8, 9, 10, 11]].any()
    kept = [0, 2, 3]
    if name == "opo":
        fewer = {key: column[kept] for key, column in batch.items()}
        np.testing.assert_allclose(found[kept], BASELINES[name](groups[:1], fewer)["advantages"])


def test_the_reward_is_at_the_last_token_that_was_drawn():
    mask = np.array([[0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1.0, 1, 1, 1, 1]])
    rewards = token_rewards(np.array([2.0, 3.0, 5.0, np.nan]), mask)
    assert rewards.tolist() == [[0, 0, 2, 0, 0], [0, 0, 0, 3, 0], [0] * 5, [0] * 5]
    assert last_drawn(mask)[[0, 1, 3]].tolist() == [2, 3, 4]
    kl = token_rewards(np.array([2.0, 3.0, 5.0, 1.0]), mask, np.full(mask.shape, 10.0), 0.1)
    assert kl[1].tolist() == [0, -1, 0, 2, 0]


def test_what_an_environment_said_changes_nothing():
    """Neither its length nor what the critic says of it."""
    random = np.random.default_rng(0)
    rewards, values = random.normal(size=(2, 1, 6))
    plain = gae(rewards, values, np.ones((1, 6)), 0.9, 0.8)
    mask = np.array([[1.0, 1, 0, 0, 0, 1, 1, 0, 1, 1]])
    wide = [np.full((1, 10), 1e6) for _ in range(2)]
    for wider, narrow in zip(wide, (rewards, values)):
        wider[mask != 0] = narrow[0]
    spread = gae(*wide, mask, 0.9, 0.8)
    np.testing.assert_array_equal(spread[mask != 0], plain[0])
    assert not spread[mask == 0].any()


def test_whitening_is_of_the_whole_batch():
    random = np.random.default_rng(0)
    values, mask = random.normal(size=(6, 5)), (random.random((6, 5)) < 0.6).astype(float)
    whitened = whiten(values, mask)
    assert whitened[mask > 0].mean() == pytest.approx(0, abs=1e-12)
    assert whitened[mask > 0].std(ddof=1) == pytest.approx(1, rel=1e-6)
    order = random.permutation(6)
    np.testing.assert_allclose(whiten(values[order], mask[order]), whitened[order], rtol=1e-12)
    assert not whiten(np.full((2, 3), 0.7), np.ones((2, 3))).any()
    assert not whiten(values, np.zeros((6, 5))).any()


def test_lambda_goes_with_the_length():
    mask = np.zeros((4, 300))
    for row, length in enumerate((0, 10, 100, 300)):
        mask[row, :length] = 1
    np.testing.assert_allclose(adaptive_lam(mask, 0.05), [0, 0, 1 - 1 / 5, 1 - 1 / 15])
    last = np.zeros((1, 300))
    last[0, 99] = 1.0  # what the deltas before it have of it: the powers of lambda, which sum to alpha l
    weights = gae(last, np.zeros((1, 300)), mask[2:3], 1.0, adaptive_lam(mask[2:3], 0.05))
    assert weights.sum() == pytest.approx(0.05 * 100, rel=1e-3)


def test_explained_variance_and_what_is_told_of_returns():
    random = np.random.default_rng(0)
    returns, mask = random.normal(size=(3, 8)), np.ones((3, 8))
    mask[:, 6:] = 0
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(np.zeros_like(returns), returns, mask) == pytest.approx(0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)
    told = value_metrics({"values": returns, "loss_mask": mask}, returns)
    assert told == pytest.approx({"explained_variance": 1, "returns/mean": returns[mask > 0].mean(),
                                  "returns/std": returns[mask > 0].std()})
    assert "explained_variance" not in value_metrics({"values": returns, "loss_mask": mask}, np.ones((3, 8)))
    assert value_metrics({"values": returns, "loss_mask": np.zeros((3, 8))}, returns) == {}


def test_groups_of_one_are_refused():
    with pytest.raises(InputError, match="--group-size"):
        BASELINES["opo"](rollouts()[0][:1], {"rewards": np.ones(1), "loss_mask": np.ones((1, 2))})
