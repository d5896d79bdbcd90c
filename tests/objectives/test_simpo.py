"""SimPO and CPO: against TRL's own code, their reductions to DPO, and their invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invariance import answer_pairs, check_objective, check_train_step, evaluate, random_scores, same, take
from preferences import assert_equals_trl

from objectives.dpo import configure
from objectives.simpo import cpo, simpo

SIMPO = functools.partial(simpo, beta=0.3, gamma=0.5, label_smoothing=0.1)
CPO = functools.partial(cpo, beta=0.3, label_smoothing=0.1)
PAPER = functools.partial(cpo, beta=0.3, nll="sum")


@pytest.fixture
def batch():
    return answer_pairs([(7, 5), (3, 9), (6, 6), (2, 4)])


@pytest.mark.parametrize(("case", "objective"), [
    ("simpo", SIMPO), ("simpo/nll", functools.partial(SIMPO, nll_weight=0.7)), ("cpo", CPO), ("cpo/sum", PAPER)])
def test_equals_trl(case, objective):
    assert_equals_trl(objective, case)


OBJECTIVES = pytest.mark.parametrize("objective", [simpo, SIMPO, cpo, CPO, PAPER],
                                     ids=["simpo", "smoothed simpo", "cpo", "smoothed cpo", "paper's cpo"])


@pytest.mark.parametrize("objective", [simpo, *(pytest.param(each, marks=pytest.mark.slow)
                                                for each in (SIMPO, cpo, CPO, PAPER))])
def test_invariances(objective, batch):
    check_objective(objective, batch, rows_per_unit=2)


@pytest.mark.slow
@OBJECTIVES
def test_invariance_through_the_train_step(objective, batch):
    check_train_step(objective, batch)


@pytest.mark.parametrize(("objective", "name"), [
    (functools.partial(simpo, beta=0.3, gamma=0.0), "sigmoid_norm"),
    (functools.partial(cpo, beta=0.3, nll_weight=0.0), "sigmoid")], ids=["simpo", "cpo"])
def test_without_margin_and_nll_they_are_dpo_with_a_reference_of_probability_1(objective, name, batch):
    scores, certain = random_scores(batch), batch | {"ref_logps": jnp.zeros_like(batch["ref_logps"])}
    ours = evaluate(objective, scores, batch)
    theirs = evaluate(configure(losses=((name, 1.0),), beta=0.3), scores, certain)
    assert float(ours[0].total) == pytest.approx(float(theirs[0].total), rel=1e-6)
    np.testing.assert_allclose(ours[1].logps, theirs[1].logps, atol=1e-7)


def test_the_margin_by_hand():
    """One token each, log-probabilities -1 and -2: x = 2 * (2 - 1) - 0.5."""
    batch = answer_pairs([(1, 1)])
    scores = random_scores(batch)._replace(logps=jnp.asarray([[0, 0, 0, -1], [0, 0, 0, -2]], jnp.float32))
    assert float(simpo(scores, batch, beta=2.0, gamma=0.5).total) == pytest.approx(np.log1p(np.exp(-1.5)), rel=1e-6)
    assert float(cpo(scores, batch, beta=2.0).total) == pytest.approx(np.log1p(np.exp(-2)) + 1, rel=1e-6)


@OBJECTIVES
def test_pairs_that_fill_up_count_for_nothing_even_if_not_finite(objective, batch):
    scores = random_scores(batch)
    mask = batch["loss_mask"].at[6:].set(0)
    dirty = evaluate(objective, jax.tree.map(lambda array: jnp.where(mask == 0, jnp.nan, array), scores),
                     batch | {"loss_mask": mask})
    clean = evaluate(objective, *take((scores, batch), slice(6)))
    same((dirty[0], take(dirty[1], slice(6))), clean, "spoiled", 1e-6)
    assert not any(np.any(array[6:]) for array in dirty[1])
