"""KTO: against TRL's own code, its reduction to APO-zero, its invariances, and the first pass that finds z."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invariance import answer_pairs, check_objective, check_train_step, evaluate, random_scores, same, take
from preferences import assert_equals_trl, load

from objectives.dpo import configure
from objectives.kto import kto, mismatched, reference_point

OBJECTIVE = functools.partial(kto, beta=0.3, desirable_weight=1.2, undesirable_weight=0.7)


@pytest.fixture
def batch():
    rows = answer_pairs([(7, 5), (3, 9), (6, 6), (2, 4)])
    return rows | {"label": jnp.asarray([1, 0, 1, 1, 0, 0, 1, 0], bool), "kto_z": jnp.full(8, 0.4)}


def first_pass():
    """z of TRL's mismatched answers, in the fixture."""
    fixture = load()
    with jax.enable_x64(True):
        rows = {"loss_mask": jnp.asarray(fixture["loss_mask"]), "ref_logps": jnp.asarray(fixture["kl_ref_logps"])}
        scores = random_scores({"segment_ids": rows["loss_mask"], "positions": rows["loss_mask"]})
        return reference_point(*mismatched(scores._replace(logps=jnp.asarray(fixture["kl_logps"])), rows))


def test_equals_trl_with_the_reference_point_of_the_first_pass():
    z = first_pass()
    assert float(z) > 0.01
    assert_equals_trl(OBJECTIVE, "kto/kto", kto_z=np.full(12, z))


def test_z_0_equals_trls_apo_zero_unpaired():
    assert_equals_trl(OBJECTIVE, "kto/apo_zero_unpaired", kto_z=np.zeros(12))


def test_invariances(batch):
    check_objective(OBJECTIVE, batch)


@pytest.mark.slow
def test_invariance_through_the_train_step(batch):
    check_train_step(OBJECTIVE, batch)


def test_pairs_with_z_0_sum_to_apo_zero(batch):
    scores, labels = random_scores(batch), jnp.asarray([True, False] * 4)
    ours = evaluate(kto, scores, batch | {"label": labels, "kto_z": jnp.zeros(8)})
    pairs = evaluate(configure(losses=(("apo_zero", 1.0),)), scores, batch)
    assert float(ours[0].total) == pytest.approx(float(pairs[0].total), rel=1e-6)
    np.testing.assert_allclose(ours[1].logps, pairs[1].logps, atol=1e-7)


def test_the_reference_point_is_the_same_from_any_split(batch):
    scores = random_scores(batch)
    whole = mismatched(scores, batch)
    parts = [mismatched(*take((scores, batch), slice(at, at + 3))) for at in (0, 3, 6)]
    sums = [sum(part[i] for part in parts) for i in (0, 1)]
    np.testing.assert_allclose(reference_point(*sums), reference_point(*whole), rtol=1e-5)
    assert float(whole[1]) == 8


@pytest.mark.parametrize(("total", "weight", "z"), [(-3.0, 4.0, 0.0), (3.0, 4.0, 0.75), (0.0, 0.0, 0.0)])
def test_the_reference_point_is_never_negative_and_needs_no_rows(total, weight, z):
    assert float(reference_point(jnp.float32(total), jnp.float32(weight))) == z


def test_no_gradient_reaches_z(batch):
    scores = random_scores(batch)

    def total(logps):
        z = reference_point(*mismatched(scores._replace(logps=logps), batch | {"ref_logps": batch["ref_logps"] - 1}))
        return kto(scores._replace(logps=logps), batch | {"kto_z": jnp.full(8, z)}).total

    z = reference_point(*mismatched(scores, batch | {"ref_logps": batch["ref_logps"] - 1}))
    assert float(z) > 0.1
    fixed = evaluate(kto, scores, batch | {"kto_z": jnp.full(8, z)})[1].logps
    np.testing.assert_allclose(jax.grad(total)(scores.logps), fixed, rtol=1e-5, atol=1e-8)


def test_weights_and_labels(batch):
    """Undesirable answers are pushed down, desirable ones up, each by its own weight."""
    scores = random_scores(batch)
    plain = jnp.sum(evaluate(kto, scores, batch)[1].logps, axis=-1)
    assert np.array_equal(plain < 0, batch["label"])
    weighted = jnp.sum(evaluate(functools.partial(kto, desirable_weight=3.0), scores, batch)[1].logps, axis=-1)
    np.testing.assert_allclose(weighted, plain * jnp.where(batch["label"], 3.0, 1.0), rtol=1e-6)
    loss = kto(scores, batch)
    assert float(loss.metrics["rewards/chosen"][1]) == float(loss.metrics["rewards/rejected"][1]) == 4
    assert float(loss.weight) == 8


def test_labels_may_be_numbers(batch):
    scores = random_scores(batch)
    numbers = batch | {"label": batch["label"].astype(jnp.float32)}
    same(evaluate(kto, scores, numbers), evaluate(kto, scores, batch), "labels", 0)


def test_rows_that_fill_up_count_for_nothing_even_if_not_finite(batch):
    scores = random_scores(batch)
    off = batch["loss_mask"].at[6:].set(0) == 0
    spoiled = batch | {"loss_mask": batch["loss_mask"].at[6:].set(0), "kto_z": batch["kto_z"].at[6:].set(jnp.nan),
                       "ref_logps": jnp.where(off, jnp.nan, batch["ref_logps"])}
    dirty = evaluate(kto, jax.tree.map(lambda array: jnp.where(off, jnp.nan, array), scores), spoiled)
    clean = evaluate(kto, *take((scores, batch), slice(6)))
    same((dirty[0], take(dirty[1], slice(6))), clean, "spoiled", 1e-6)
    assert not any(np.any(array[6:]) for array in dirty[1])
