"""ORPO: against TRL's own code, its reduction to SFT, its invariances, and odds at the ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invariance import answer_pairs, check_objective, check_train_step, evaluate, random_scores, same, take
from preferences import assert_equals_trl

from objectives.dpo import configure
from objectives.orpo import log_odds, orpo

OBJECTIVE = functools.partial(orpo, beta=0.3)


@pytest.fixture
def batch():
    return answer_pairs([(7, 5), (3, 9), (6, 6), (2, 4)])


def test_equals_trl():
    assert_equals_trl(OBJECTIVE, "orpo")


def test_invariances(batch):
    check_objective(OBJECTIVE, batch, rows_per_unit=2)


@pytest.mark.slow
def test_invariance_through_the_train_step(batch):
    check_train_step(OBJECTIVE, batch)


def test_beta_0_is_sft_on_the_chosen_answer(batch):
    scores = random_scores(batch)
    ours = evaluate(functools.partial(orpo, beta=0.0), scores, batch)
    sft = evaluate(configure(losses=(("sft", 1.0),)), scores, batch)
    assert float(ours[0].total) == pytest.approx(float(sft[0].total), rel=1e-6)
    np.testing.assert_allclose(ours[1].logps, sft[1].logps, atol=1e-7)


def test_metrics_by_hand():
    """One token each, of probabilities 0.8 and 0.5: odds 4 and 1."""
    batch = answer_pairs([(1, 1)])
    logps = jnp.log(jnp.asarray([[1, 1, 1, 0.8], [1, 1, 1, 0.5]], jnp.float32))
    metrics = orpo(random_scores(batch)._replace(logps=logps), batch).metrics
    expected = {"nll_loss": -np.log(0.8), "log_odds_chosen": np.log(4), "log_odds_ratio": np.log(0.8),
                "rewards/chosen": 0.1 * np.log(0.8), "rewards/accuracies": 1, "rewards/ties": 0}
    assert {name: float(metrics[name][0]) for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("logp", [0.0, -1e-9, -1e-3, -1.0, -50.0, -1000.0])
def test_odds_and_their_gradient_are_finite_at_both_ends(logp):
    value, slope = jax.value_and_grad(lambda x: log_odds(x[None])[0])(jnp.float32(logp))
    assert np.isfinite(value)
    assert np.isfinite(slope)
    if logp < -1e-4:
        assert float(value) == pytest.approx(logp - np.log(-np.expm1(logp)), rel=1e-4)


def test_pairs_that_fill_up_count_for_nothing_even_if_not_finite(batch):
    scores = random_scores(batch)
    mask = batch["loss_mask"].at[6:].set(0)
    dirty = evaluate(orpo, jax.tree.map(lambda array: jnp.where(mask == 0, jnp.nan, array), scores),
                     batch | {"loss_mask": mask})
    clean = evaluate(orpo, *take((scores, batch), slice(6)))
    same((dirty[0], take(dirty[1], slice(6))), clean, "spoiled", 1e-6)
    assert not any(np.any(array[6:]) for array in dirty[1])
