"""The DPO family: against TRL's own code, its reductions, its invariances, and what it says of bad settings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invariance import answer_pairs, check_objective, check_train_step, evaluate, random_scores, same, split
from preferences import assert_equals_trl, cases, load, trl_names
from tiny import LORA

from objectives.dpo import COUPLED, DIVERGENCES, LOSSES, REVERSE_KL_ONLY, chosen_length, configure
from objectives.pairs import split_pairs

LENGTHS = [(7, 5), (3, 9), (6, 6), (2, 4)]


def named(name, **settings):
    """One loss, with label smoothing where it is not finite without."""
    smoothing = {"label_smoothing": 0.1} if name == "exo_pair" else {}
    return configure(losses=((name, 1.0),), **{"beta": 0.3} | smoothing | settings)


def with_columns(batch):
    return batch | {"chosen_length": chosen_length(batch["loss_mask"])}


@pytest.fixture
def batch():
    return with_columns(answer_pairs(LENGTHS, seed=1))  # pairs that the policy orders in another way than the reference


# ---------------------------------------------------------------------------------------------------- TRL's own

OPTIONS = {"ld": {"ld_alpha": 0.4}, "wpo": {"wpo": True}, "alpha_divergence_0.3": {"divergence": "alpha_divergence",
                                                                                  "alpha": 0.3}}
SPECIAL = {"dpo/sigmoid_smoothed": named("sigmoid", label_smoothing=0.1),
           "dpo/mixed": configure(losses=(("sigmoid", 0.8), ("bco_pair", 0.2), ("sft_token", 1.0)), beta=0.3)}


def objective_of(case):
    """dpo/LOSS or dpo/LOSS/OPTION: as the case was made. TRL's sigmoid takes no notice of label smoothing."""
    if case in SPECIAL:
        return SPECIAL[case]
    _, name, *rest = case.split("/")
    options = OPTIONS.get(rest[0], {"divergence": rest[0]}) if rest else {}
    return named(name, label_smoothing=0.0 if name == "sigmoid" else 0.1, **options)


@pytest.mark.parametrize("case", cases("dpo/"))
def test_equals_trl(case):
    columns = {"chosen_length": chosen_length(jnp.asarray(load()["loss_mask"]))}
    assert_equals_trl(objective_of(case), case, **columns)


def test_every_loss_and_the_metrics_have_a_case():
    assert {f"dpo/{name}" for name in LOSSES} <= set(cases("dpo/"))
    ours = evaluate(named("sigmoid"), random_scores(answer_pairs(LENGTHS)), answer_pairs(LENGTHS))[0].metrics
    assert set(ours) - set(trl_names("dpo/sigmoid")) == {"rewards/ties"}


# ------------------------------------------------------------------------------------------------- invariances

QUICK = ("sigmoid", "aot", "sft")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
                                  for name in LOSSES])
def test_invariances(name, batch):
    check_objective(named(name), batch, rows_per_unit=2)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"divergence": "forward_kl"}, {"divergence": "js_divergence"},
                                      {"divergence": "alpha_divergence"}, {"ld_alpha": 0.3},
                                      {"losses": (("ipo", 1.0), ("sft", 0.5))}], ids=str)
def test_invariances_of_options(settings, batch):
    check_objective(configure(**settings), batch, rows_per_unit=2)


def test_invariances_of_wpo(batch):
    check_objective(named("sigmoid", wpo=True), batch, rows_per_unit=2, differences=False)


MIXED = configure(losses=(("sigmoid", 1.0), ("sft", 0.1)), label_smoothing=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_invariance_through_the_train_step(lora, batch):
    check_train_step(MIXED, batch, lora)


def test_aot_sees_all_pairs_and_says_so(batch):
    """Sorting is over the whole batch: parts give another loss, so the objective is marked."""
    objective, scores = named("aot"), random_scores(batch)
    assert objective.couples_rows
    assert not named("sigmoid").couples_rows
    assert {name for name in LOSSES if named(name).couples_rows} == COUPLED
    parts = split(objective, scores, batch, 2)[0]
    assert abs(float(parts.total - objective(scores, batch).total)) > 1e-3


# --------------------------------------------------------------------------------------------------- reductions

def assert_same_loss(one, other, batch, scores=None):
    scores = random_scores(batch) if scores is None else scores
    a, b = evaluate(one, scores, batch), evaluate(other, scores, batch)
    same((a[0]._replace(metrics={}), a[1]), (b[0]._replace(metrics={}), b[1]), "reduction", 1e-5)


@pytest.mark.parametrize(("one", "other"), [
    (named("robust"), named("sigmoid")),
    (named("sigmoid", divergence="alpha_divergence", alpha=1.0), named("sigmoid")),
    (named("ipo", divergence="alpha_divergence", alpha=0.0), named("ipo", divergence="forward_kl")),
    (named("hinge", ld_alpha=1.0), named("hinge")),
], ids=["robust", "alpha 1", "alpha 0", "ld_alpha 1"])
def test_reductions(one, other, batch):
    assert_same_loss(one, other, batch)


@pytest.mark.parametrize(("one", "other"), [("ipo", "ipo_sum"), ("sigmoid_norm", "sigmoid"), ("sft", "sft_token")])
def test_answers_of_one_token_need_no_division(one, other):
    assert_same_loss(named(one), named(other), with_columns(answer_pairs([(1, 1)] * 4)))


def test_aot_of_one_pair_is_sigmoid():
    assert_same_loss(named("aot"), named("sigmoid"), answer_pairs([(7, 5)]))
    assert_same_loss(named("aot_unpaired"), named("sigmoid"), answer_pairs([(7, 5)]))


def test_ld_dpo_without_the_tail_is_dpo_on_answers_cut_to_the_shorter(batch):
    shorter = answer_pairs(LENGTHS)["loss_mask"]
    for pair, lengths in enumerate(LENGTHS):
        shorter = shorter.at[2 * pair : 2 * pair + 2, 3 + min(lengths) :].set(0)
    scores = random_scores(batch)
    full = evaluate(named("sigmoid", ld_alpha=0.0), scores, batch)
    cut = evaluate(named("sigmoid"), scores, batch | {"loss_mask": shorter})
    assert float(full[0].total) == pytest.approx(float(cut[0].total), rel=1e-6)
    np.testing.assert_allclose(full[1].logps, cut[1].logps, atol=1e-7)


# ------------------------------------------------------------------------------------------------ the first step

AT_REFERENCE = {"sigmoid": math.log(2), "hinge": 1.0, "nca_pair": 2 * math.log(2), "bco_pair": 2 * math.log(2),
                "apo_zero": 1.0, "apo_down": 1.0, "aot": math.log(2), "aot_unpaired": math.log(2),
                "sigmoid_norm": math.log(2), "discopop": 0.5 * math.log(2) + 0.5}


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", AT_REFERENCE)
def test_a_policy_that_is_its_reference_has_rewards_of_exactly_0(name, divergence, batch):
    if name in REVERSE_KL_ONLY and divergence != "reverse_kl":
        return
    scores = random_scores(batch)
    loss = jax.jit(named(name, divergence=divergence))(scores, batch | {"ref_logps": scores.logps})
    assert float(loss.total / loss.weight) == pytest.approx(AT_REFERENCE[name], rel=1e-6)
    for metric in ("chosen", "rejected", "margins", "accuracies"):
        assert float(loss.metrics[f"rewards/{metric}"][0]) == 0
    assert float(loss.metrics["rewards/ties"][0]) == float(loss.metrics["rewards/ties"][1]) == 4


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"discopop"}))  # it rises near 0, as its docstring says
def test_descending_prefers_the_chosen_answer(name, batch):
    """A small step down raises the chosen answer's log-probability over the rejected one's."""
    scores = random_scores(batch)._replace(logps=batch["ref_logps"] * (batch["segment_ids"] != 0))
    if name == "sppo_hard" or name in COUPLED:
        scores = scores._replace(logps=scores.logps * 1.01)
    gradient = evaluate(named(name), scores, batch)[1].logps
    chosen, rejected = split_pairs(jnp.sum(gradient, axis=-1))
    assert float(jnp.sum(rejected - chosen)) > 0


# ---------------------------------------------------------------------------------------------------- the edges

@pytest.mark.parametrize("name", LOSSES)
def test_what_is_masked_counts_for_nothing_even_if_not_finite(name, batch):
    """A pair that fills up the batch, and positions off the answers, may hold anything, in scores and columns."""
    scores, objective = random_scores(batch), named(name)
    gone = jnp.arange(8)[:, None] < 6
    off = (batch["loss_mask"] == 0) | ~gone
    spoiled = batch | {"loss_mask": batch["loss_mask"] * gone, "ref_logps": jnp.where(off, jnp.nan, batch["ref_logps"]),
                       "chosen_length": jnp.where(gone[:, 0], 5.0, 0.0)}
    kept = {key: array[:6] for key, array in batch.items()} | {"chosen_length": jnp.full(6, 5.0)}
    clean = evaluate(objective, jax.tree.map(lambda array: array[:6], scores), kept)
    dirty = evaluate(objective, jax.tree.map(lambda array: jnp.where(off, jnp.nan, array), scores), spoiled)
    same((dirty[0], jax.tree.map(lambda array: array[:6], dirty[1])), clean, "spoiled", 1e-6)
    assert not any(np.any(array[6:]) for array in dirty[1])


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"sppo_hard", "ipo", "ipo_sum"}))
@pytest.mark.parametrize("scale", [300.0, -300.0])
def test_extreme_answers_keep_the_gradient_finite(name, scale, batch):
    scores = random_scores(batch)
    sign = jnp.where(jnp.arange(8) % 2 == 0, scale, -scale)[:, None]
    loss, gradient = evaluate(named(name, beta=1.0), scores, batch | {"ref_logps": scores.logps - sign})
    assert np.isfinite(loss.total)
    assert np.all(np.isfinite(gradient.logps))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_extreme_answers_under_every_divergence(divergence, batch):
    scores = random_scores(batch)
    loss, gradient = evaluate(configure(divergence=divergence), scores, batch | {"ref_logps": scores.logps + 300})
    assert np.isfinite(loss.total)
    assert np.all(np.isfinite(gradient.logps))


@pytest.mark.parametrize(("settings", "words"), [
    ({"losses": (("sigmoyd", 1.0),)}, "no loss is called sigmoyd; there are sigmoid, hinge, ipo"),
    ({"losses": ()}, "no loss is named"),
    ({"losses": (("sft", 1.0), ("sft", 0.5))}, "twice"),
    ({"beta": 0.0}, "beta is 0.0"), ({"beta": -1.0}, "above 0"), ({"beta": math.nan}, "above 0"),
    ({"label_smoothing": 0.5}, "below 0.5"), ({"label_smoothing": -0.1}, "at least 0"),
    ({"losses": (("exo_pair", 1.0),)}, "infinite without label smoothing"),
    ({"divergence": "hellinger"}, "no divergence is called hellinger; there are reverse_kl"),
    ({"losses": (("apo_zero", 1.0),), "divergence": "forward_kl"}, "apo_zero: reverse_kl only"),
    ({"losses": (("aot", 1.0),), "wpo": True}, "aot pairs answers anew"),
], ids=str)
def test_bad_settings_are_one_line(settings, words):
    with pytest.raises(ValueError, match=words) as caught:
        configure(**settings)
    assert "\n" not in str(caught.value)


def test_a_pair_cut_in_two_is_refused(batch):
    with pytest.raises(AssertionError):
        named("sigmoid")(*jax.tree.map(lambda array: array[:3], (random_scores(batch), batch)))


def test_a_missing_reference_is_named(batch):
    batch.pop("ref_logps")
    with pytest.raises(KeyError, match="ref_logps"):
        named("sigmoid")(random_scores(batch), batch)
