"""Next-token and SFT losses against numpy, and their gradients by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import packed, rows

from models.scoring import TokenScores
from objectives.next_token import next_token
from objectives.sft import sft


@pytest.fixture
def batch():
    return packed(rows([7, 5, 9]), 16)


def scores_like(batch, seed=0):
    random = np.random.default_rng(seed)
    return TokenScores(*(jnp.asarray(sign * random.exponential(size=batch["tokens"].shape), jnp.float32)
                         for sign in (-1, 1, 1, -1, 1)))


def test_sft_is_the_sum_over_targets(batch):
    scores = scores_like(batch)
    loss = sft(scores, batch)
    expected = sum(-float(scores.logps[b, t]) for b, t in zip(*np.nonzero(batch["loss_mask"]), strict=True))
    assert float(loss.total) == pytest.approx(expected, rel=1e-6)
    assert float(loss.weight) == batch["loss_mask"].sum()
    total, weight = loss.metrics["entropy"]
    assert float(total / weight) == pytest.approx(np.asarray(scores.entropy)[batch["loss_mask"] > 0].mean(), rel=1e-6)


def test_next_token_counts_all_but_first_tokens_and_padding(batch):
    loss = next_token(scores_like(batch), batch)
    assert float(loss.weight) == (7 - 1) + (5 - 1) + (9 - 1)


@pytest.mark.parametrize("objective", [sft, next_token])
def test_gradient_by_finite_differences(objective, batch):
    scores = scores_like(batch)

    def total(logps):
        return objective(scores._replace(logps=logps), batch).total

    gradient, direction = jax.grad(total)(scores.logps), scores_like(batch, 1).logps
    step = 1e-2
    difference = (total(scores.logps + step * direction) - total(scores.logps - step * direction)) / (2 * step)
    assert float(jnp.vdot(gradient, direction)) == pytest.approx(float(difference), rel=1e-3)


@pytest.mark.parametrize("objective", [sft, next_token])
def test_weight_zero_is_loss_zero_and_finite(objective, batch):
    empty = {name: np.zeros_like(array) for name, array in batch.items()}
    broken = TokenScores(*(each * jnp.nan for each in scores_like(batch)))

    def total(logps):
        return objective(broken._replace(logps=logps), empty).total

    value, gradient = jax.value_and_grad(total)(broken.logps)
    assert float(value) == 0
    assert float(objective(broken, empty).weight) == 0
    assert not np.any(gradient)
