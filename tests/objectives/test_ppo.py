"""PPO: the value's loss against verl's own code, the policy's against its formula, invariances; decoupled policies."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invariance import check_objective
from tiny import padded, rows

from objectives.grpo import configure, grpo
from objectives.ppo import configure_policy, value_loss


@functools.cache
def load():
    with np.load(Path(__file__).parents[1] / "fixtures" / "ppo.npz") as arrays:
        return dict(arrays)


class Values(NamedTuple):
    values: jax.Array


@pytest.mark.parametrize("epsilon", [0.2, pytest.param(0.5, marks=pytest.mark.slow)])
def test_the_values_loss_equals_verls(epsilon):
    with jax.enable_x64(True):
        batch = {name: jnp.asarray(load()[name]) for name in ("loss_mask", "values", "returns")}

        def mean(values):
            loss = value_loss(Values(values), batch, epsilon)
            return loss.total / loss.weight, loss

        (value, loss), gradient = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(load()["new_values"]))
    assert float(value) == pytest.approx(float(load()[f"value_{epsilon}/loss"]), rel=1e-6)
    np.testing.assert_allclose(gradient, load()[f"value_{epsilon}/grad"], rtol=1e-6, atol=1e-12)
    clipped, weight = loss.metrics["clip_ratio"]
    assert 0 < float(clipped / weight) == pytest.approx(float(load()[f"value_{epsilon}/clip_ratio"]), rel=1e-6)


@pytest.fixture
def batch():
    made = padded(rows([9, 4, 12, 7, 6, 11, 5, 8]))
    random = np.random.default_rng(1)
    columns = {name: jnp.asarray(random.normal(size=made["tokens"].shape), jnp.float32)
               for name in ("values", "returns", "advantages")}
    return made | columns | {"old_logps": jnp.asarray(-random.exponential(size=made["tokens"].shape), jnp.float32)}


@pytest.mark.slow
def test_invariances_of_the_values_loss(batch):
    values = batch["values"] + 0.3 * jnp.asarray(np.random.default_rng(2).normal(size=batch["values"].shape))
    check_objective(value_loss, batch, Values(values.astype(jnp.float32)))


@pytest.mark.slow
def test_invariances_of_the_policys_loss(batch):
    check_objective(configure_policy(epsilon_high=0.3, entropy_coefficient=0.05), batch)


def test_a_critic_that_moved_by_rounding_alone_is_not_clipped(batch):
    """As the values before a step, which another program computed, may differ from the first ones in it."""
    loss = value_loss(Values(batch["values"] * jnp.float32(1 + 1e-6)), batch, 1e-3)
    error = float(loss.metrics["error"][0])
    assert float(loss.total) == pytest.approx(error / 2, rel=1e-6)
    assert float(loss.metrics["clip_ratio"][0]) == 0
    assert float(value_loss(Values(batch["values"] + 0.01), batch, 1e-3).metrics["clip_ratio"][0]) > 0


def given_scores(logps):
    return SimpleNamespace(logps=logps, entropy=jnp.zeros_like(logps))


def test_the_policys_loss_is_ppos():
    """By token; and approx_kl is the mean of (r - 1) - log r."""
    random = np.random.default_rng(0)
    mask = (random.random((3, 6)) < 0.6).astype(float)
    old, moved, A = -random.exponential(size=mask.shape), 0.4 * random.normal(size=mask.shape), random.normal(
        size=mask.shape)
    r = np.exp(moved)
    expected = -np.minimum(r * A, np.clip(r, 0.8, 1.2) * A)
    with jax.enable_x64(True):
        columns = {"loss_mask": mask, "advantages": A, "old_logps": old, "segment_ids": np.ones(mask.shape, int)}
        loss = configure_policy()(given_scores(jnp.asarray(old + moved)), jax.tree.map(jnp.asarray, columns))
    assert float(loss.total / loss.weight) == pytest.approx((expected * mask).sum() / mask.sum(), rel=1e-9)
    kl, weight = loss.metrics["approx_kl"]
    assert float(kl / weight) == pytest.approx(((r - 1 - moved) * mask).sum() / mask.sum(), rel=1e-9)


def test_a_policy_that_did_not_move_has_ratio_1_and_no_kl(batch):
    logps = batch["old_logps"]
    loss = configure_policy()(given_scores(logps), batch)
    metrics = {name: float(total / weight) for name, (total, weight) in loss.metrics.items()}
    assert (metrics["ratio/mean"], metrics["approx_kl"]) == (1.0, 0.0)


def test_old_logps_are_asked_for():
    assert set(configure_policy(beta=0.1).needs) == {"advantages", "ref_logps", "old_logps"}


# ----------------------------------------------------------------------------------------------------- off policy

@pytest.mark.slow
def test_the_geometric_mask_leaves_the_rows_that_verls_leaves():
    mask, log_ratios = load()["loss_mask"], load()["log_ratios"]
    kept = load()["mask/seq_mean_k1"]
    assert 0 < (kept.sum(1) > 0).sum() < len(mask)
    columns = {"loss_mask": mask, "advantages": np.ones(len(mask)), "old_logps": log_ratios - 3,
               "sampler_logps": np.full(mask.shape, -3.0), "segment_ids": np.ones(mask.shape, int)}
    with jax.enable_x64(True):
        objective = configure(importance_sampling_correction="geometric_mask", importance_sampling_floor=0.8,
                              importance_sampling_cap=1.25)
        logps = jnp.asarray(columns["old_logps"])
        gradient = jax.grad(lambda logps: objective(given_scores(logps), jax.tree.map(jnp.asarray, columns)).total)(
            logps)
    np.testing.assert_allclose(gradient, -kept, rtol=1e-12)


@pytest.mark.slow
def test_behaviour_proximal_and_current_policy_are_apart():
    """Decoupled PPO: w r is the whole ratio to what drew the tokens; the bound is around the proximal policy."""
    random = np.random.default_rng(0)
    behaviour = -random.exponential(size=(4, 7)) - 0.2
    proximal, current = behaviour + 0.3 * random.normal(size=(2, 4, 7))
    A, mask = random.normal(size=(4, 7)), np.ones((4, 7))
    w, r = np.exp(proximal - behaviour), np.exp(current - proximal)
    expected = -w * np.minimum(r * A, np.clip(r, 0.8, 1.2) * A)
    free = (np.abs(r - 1) < 0.2) | (np.sign(r - 1) != np.sign(A))
    columns = {"loss_mask": mask, "advantages": A, "old_logps": proximal, "sampler_logps": behaviour,
               "segment_ids": mask.astype(int)}
    settings = {"importance_sampling_correction": "token_truncate", "importance_sampling_cap": 1e9}
    with jax.enable_x64(True):
        batch = jax.tree.map(jnp.asarray, columns)
        total, gradient = jax.value_and_grad(lambda logps: grpo(given_scores(logps), batch, **settings).total)(
            jnp.asarray(current))
    assert float(total) == pytest.approx(expected.sum(), rel=1e-9)
    np.testing.assert_allclose(gradient, np.where(free, -np.exp(current - behaviour) * A, 0.0), rtol=1e-9, atol=1e-12)
