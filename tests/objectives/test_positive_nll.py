"""The NLL of right answers beside a policy's loss: the mean over their tokens, however the batch is split."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invariance import check_objective
from tiny import padded, rows

from objectives.grpo import configure
from objectives.positive_nll import with_nll
from rollouts.credit import nll_weights

REWARDS = np.array([1.0, 0.0, 1.0, np.nan, 1.5, 0.9])


@pytest.mark.parametrize("settings", [
    {}, pytest.param({"loss_aggregation": "sequence_mean"}, marks=pytest.mark.slow)])
def test_it_is_the_mean_nll_of_right_answers(settings):
    random = np.random.default_rng(0)
    mask = (random.random((6, 5)) < 0.7).astype(np.float32)
    mask[:, 0] = 1
    logps = -random.exponential(size=mask.shape)
    batch = {"loss_mask": mask, "advantages": random.normal(size=6), "segment_ids": np.ones(mask.shape, int)}
    weights = nll_weights(batch, REWARDS, 1.0, 1, by_token=not settings)
    with jax.enable_x64(True):
        given = jax.tree.map(lambda each: jnp.asarray(np.asarray(each, np.float64)), batch | {"nll_weights": weights})
        scores = SimpleNamespace(logps=jnp.asarray(logps), entropy=jnp.zeros_like(logps))
        base = configure(**settings)
        plain, both = (objective(scores, given) for objective in (base, with_nll(base, 0.1)))
    right = mask * (np.nan_to_num(REWARDS) >= 1)[:, None]
    expected = -(right * logps).sum() / right.sum()
    added = (both.total - plain.total) / plain.weight
    assert float(added) == pytest.approx(0.1 * expected, rel=1e-6)
    nll, weight = both.metrics["nll"]
    assert float(nll / weight) == pytest.approx(expected, rel=1e-6)


def test_weights_are_of_each_mini_batch():
    mask = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]], np.float32)
    of_tokens = nll_weights({"loss_mask": mask}, REWARDS, 1.0, 2, by_token=True)
    np.testing.assert_allclose(of_tokens, [6 / 5, 0, 6 / 5, 0, 7 / 3, 0], rtol=1e-6)
    none = nll_weights({"loss_mask": mask}, REWARDS, 2.0, 1, by_token=True)
    assert not none.any()


@pytest.mark.slow
def test_invariances():
    batch = padded(rows([9, 4, 12, 7, 6, 11, 5, 8]))
    random = np.random.default_rng(1)
    columns = {"advantages": random.normal(size=8), "nll_weights": np.array([0, 1.5, 0, 2, 0, 0, 1, 1]),
               "old_logps": -random.exponential(size=batch["tokens"].shape)}
    check_objective(with_nll(configure(), 0.1), batch | {name: jnp.asarray(each, jnp.float32)
                                                        for name, each in columns.items()})
