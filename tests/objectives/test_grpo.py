"""GRPO: against TRL's own code, invariances, whose gradient each KL has, advantages, and tasks to be solved."""

import dataclasses
import functools
import itertools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from invariance import check_objective, check_train_step, evaluate, random_scores, same
from tiny import padded, rows

from objectives.advantages import ADVANTAGES, penalised
from objectives.grpo import AGGREGATIONS, CORRECTIONS, KL, LOSSES, RATIOS, Settings, configure, grpo

SEQUENCE = {"importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.05}
GSPO = SEQUENCE | {"loss_aggregation": "sequence_mean"}
RLOO = {"importance_sampling_level": "product", "loss_aggregation": "sequence_mean"}
DR_GRPO = {"loss_aggregation": "constant", "constant_length": 20.0}
NARROW = {"importance_sampling_cap": 1.2, "importance_sampling_floor": 0.7}
MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
TRL = {
    "token_mean": {}, "sequence_mean": {"loss_aggregation": "sequence_mean"}, "constant": DR_GRPO, "first_update": {},
    "clip_higher": {"epsilon_low": 0.1, "epsilon_high": 0.3}, "delta": {"delta": 1.4}, "by_token": {},
    "gspo": GSPO, "gspo_token_mean": SEQUENCE, "gspo_constant": SEQUENCE | DR_GRPO,
    "luspo": SEQUENCE | DR_GRPO | {"constant_length": 1.0}, "gspo_by_token":
    GSPO | {"importance_sampling_level": "sequence_token"},
    "rloo": RLOO,
    "cispo": {"loss": "cispo", "epsilon_high": 0.3}, "kl_k1": {"beta": 0.1, "kl": "k1"},
    "kl_k2": {"beta": 0.1, "kl": "k2"}, "kl_k3": {"beta": 0.1}, "kl_k3_weighted": {"beta": 0.1, "kl_weighted": True},
    "kl_k3_gspo": GSPO | {"beta": 0.1, "kl_weighted": True}, "entropy": {"entropy_coefficient": 0.05},
    "truncated_token_mean": {"mask_truncated": True},
    "truncated_sequence_mean": {"mask_truncated": True, "loss_aggregation": "sequence_mean"},
    "truncated_constant": {"mask_truncated": True} | DR_GRPO,
    **{mode: {"importance_sampling_correction": mode, "beta": 0.1} for mode in MODES},
    **{f"{mode}_narrow": {"importance_sampling_correction": mode} | NARROW for mode in MODES}}
"""case of the fixture -> our settings for it"""


@functools.cache
def load():
    with np.load(Path(__file__).parents[1] / "fixtures" / "grpo.npz") as arrays:
        return dict(arrays)


def completions(case=""):
    """The fixture's batch, with the advantages and columns of a case."""
    names = ("loss_mask", "advantages", "old_logps", "ref_logps", "sampler_logps", "truncated")
    batch = {name: jnp.asarray(load()[name]) for name in names}
    batch["segment_ids"] = jnp.ones(batch["loss_mask"].shape, jnp.int32)
    if case.endswith("by_token"):
        batch["advantages"] = jnp.asarray(load()["advantages_by_token"])
    return {name: column for name, column in batch.items() if (case, name) != ("first_update", "old_logps")}


def mean_loss(objective, batch, logps, entropy):
    """Mean loss and its gradient with respect to logps, and the Loss."""
    def mean(logps):
        loss = objective(SimpleNamespace(logps=logps, entropy=entropy), batch)
        return loss.total / loss.weight, loss

    (value, loss), gradient = jax.value_and_grad(mean, has_aux=True)(logps)
    return value, gradient, loss


# --------------------------------------------------------------------------------------------------------- TRL

@pytest.mark.parametrize("case", TRL)
def test_equals_trl(case):
    with jax.enable_x64(True):
        given = (jnp.asarray(load()[name]) for name in ("logps", "entropy"))
        value, gradient, loss = mean_loss(configure(**TRL[case]), completions(case), *given)
    assert float(value) == pytest.approx(float(load()[f"{case}/loss"]), rel=1e-6)
    np.testing.assert_allclose(gradient, load()[f"{case}/grad"], rtol=1e-6, atol=1e-9)
    logged = {name: f"{case}/metrics/{name}" for name in loss.metrics if f"{case}/metrics/{name}" in load()}
    of_cut_rows = "rloo" in case or "truncated" in case  # TRL counts rows without tokens, and logs RLOO's per token
    for name, key in logged.items():
        if name != "kl" or not (TRL[case].get("kl_weighted") or of_cut_rows):  # TRL logs what the loss has
            total, weight = loss.metrics[name]
            assert float(total / weight) == pytest.approx(float(load()[key]), rel=1e-6), name


def test_the_cases_tell_the_variants_apart():
    values = [round(float(load()[f"{case}/loss"]), 9) for case in TRL]
    assert len(set(values)) == len(values)
    clipped = [float(load()[f"{case}/metrics/clip_ratio/{side}_mean"]) for case in ("token_mean", "gspo", "rloo")
               for side in ("low", "high")]
    assert all(0 < share < 0.9 for share in clipped)


def test_every_choice_has_a_case():
    used = {value for settings in TRL.values() for value in settings.values() if isinstance(value, str)}
    used |= {"token", "clip", "token_mean", "k3", "none"}  # the defaults
    assert used == {*RATIOS, *LOSSES, *AGGREGATIONS, *KL, *CORRECTIONS} - {"geometric_mask"}  # verl's: test_ppo.py


def test_every_setting_has_a_case():
    used = {name for settings in TRL.values() for name in settings}
    assert used == {field.name for field in dataclasses.fields(Settings)}


# -------------------------------------------------------------------------------------------------- invariances

@pytest.fixture
def batch():
    made = padded(rows([9, 4, 12, 7, 6, 11, 5, 8]))
    random = np.random.default_rng(1)
    logps = np.asarray(random_scores(made).logps)
    near = {name: jnp.asarray(np.minimum(logps + 0.4 * random.normal(size=logps.shape), 0), jnp.float32)
            for name in ("old_logps", "ref_logps", "sampler_logps")}
    return made | near | {"advantages": jnp.asarray(random.normal(size=8), jnp.float32),
                          "truncated": jnp.asarray([0, 0, 1, 0, 0, 0, 1, 0], jnp.float32)}


STOPPED = {"cispo", "gspo_by_token", "first_update"}
"""cases whose gradient is not that of their value"""


COMBINED = {
    "token": NARROW | {"importance_sampling_correction": "token_truncate", "mask_truncated": True,
                       "entropy_coefficient": 0.1},
    "sequence": GSPO | {"importance_sampling_correction": "sequence_mask", "beta": 0.1, "kl_weighted": True},
    "product": RLOO | DR_GRPO | {"importance_sampling_correction": "sequence_truncate", "beta": 0.1, "kl": "k2",
                                 "delta": 1.4}}
"""several choices at once: each by itself is a slow test"""


@pytest.mark.parametrize("case", ["token", pytest.param("sequence", marks=pytest.mark.slow),
                                  pytest.param("product", marks=pytest.mark.slow)])
def test_invariances(batch, case):
    check_objective(configure(**COMBINED[case]), batch)


@pytest.mark.slow
@pytest.mark.parametrize("case", TRL)
def test_invariances_of_every_case(batch, case):
    columns = {name: column for name, column in batch.items() if (case, name) != ("first_update", "old_logps")}
    if case.endswith("by_token"):
        columns["advantages"] = jnp.asarray(np.random.default_rng(2).normal(size=batch["tokens"].shape), jnp.float32)
    check_objective(configure(**TRL[case]), columns, differences=case not in STOPPED)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["token_mean", "kl_k3_gspo", "sequence_mask"])
def test_invariance_through_the_train_step(batch, case):
    check_train_step(configure(**TRL[case]), batch)


def test_what_is_no_target_counts_for_nothing_even_if_not_finite(batch):
    objective = configure(mask_truncated=True, importance_sampling_correction="token_truncate", beta=0.1,
                          kl_weighted=True, entropy_coefficient=0.1)
    scores, off = random_scores(batch), batch["loss_mask"] == 0
    spoil = functools.partial(jnp.where, off, jnp.nan)
    spoiled = batch | {name: spoil(batch[name]) for name in ("old_logps", "ref_logps", "sampler_logps")}
    same(evaluate(objective, jax.tree.map(spoil, scores), spoiled), evaluate(objective, scores, batch), "spoiled", 0)


def test_rows_without_a_reward_count_as_rows_but_do_not_move_the_policy(batch):
    scores = random_scores(batch)
    none = batch | {"advantages": batch["advantages"].at[3].set(0.0)}
    loss, gradient = evaluate(configure(**GSPO), scores, none)
    assert float(loss.weight) == 8
    assert not np.any(gradient.logps[3])
    assert np.any(gradient.logps[2])


# ------------------------------------------------------------------------------------------- ratios and weights

def test_a_policy_that_is_the_old_one_has_ratios_of_1(batch):
    """With a learning rate of 0 every update is the first: exactly, though the scores round differently."""
    scores = random_scores(batch)
    rounded = jnp.nextafter(scores.logps, -jnp.inf)
    first = {name: column for name, column in batch.items() if name != "old_logps"}
    for settings in ({}, GSPO, RLOO, {"loss": "cispo"}):
        bounds = {"epsilon_high": 0.0} | ({} if settings.get("loss") == "cispo" else {"epsilon_low": 0.0})
        objective = configure(**settings | bounds)
        loss, gradient = evaluate(objective, scores, batch | {"old_logps": rounded})
        same((loss, gradient), evaluate(objective, scores, first), "old_logps", 1e-6)
        found = {name: float(total / weight) for name, (total, weight) in loss.metrics.items()}
        assert found["ratio/mean"] == 1
        assert found["clip_ratio/region_mean"] == found["clip_ratio/low_mean"] == found["clip_ratio/high_mean"] == 0


def test_a_first_update_is_reinforce(batch):
    """sum_t -A grad logp, whatever the loss: also RLOO's and Dr. GRPO's, up to their constant."""
    scores, first = random_scores(batch), {name: each for name, each in batch.items() if name != "old_logps"}
    expected = -batch["advantages"][:, None] * batch["loss_mask"]
    for settings in ({}, {"loss": "cispo"}, {"loss_aggregation": "constant", "constant_length": 1.0}):
        np.testing.assert_allclose(evaluate(configure(**settings), scores, first)[1].logps, expected, rtol=1e-6)


def test_gspo_token_is_gspo_where_a_row_has_one_advantage(batch):
    scores = random_scores(batch)
    both = [evaluate(configure(**GSPO | {"importance_sampling_level": level}), scores, batch)
            for level in ("sequence", "sequence_token")]
    np.testing.assert_allclose(both[0][0].total, both[1][0].total, rtol=1e-6)
    np.testing.assert_allclose(both[0][1].logps, both[1][1].logps, atol=1e-7)


def single(log_ratio, advantage, **settings):
    """(mean loss, its gradient) of one row of one token, whose logp is -1."""
    one = jnp.ones((1, 1))
    batch = {"loss_mask": one, "segment_ids": jnp.ones((1, 1), jnp.int32), "advantages": jnp.full(1, advantage),
             "old_logps": -one - log_ratio}
    value, gradient, loss = mean_loss(configure(**settings), batch, -one, one)
    return float(value), float(gradient[0, 0]), {name: float(total) for name, (total, _) in loss.metrics.items()}


@pytest.mark.parametrize(("ratio", "advantage", "side"), [
    (1.5, 2.0, "high"), (1.5, -2.0, None), (0.5, 2.0, None), (0.5, -2.0, "low"), (1.1, 2.0, None)])
def test_each_side_of_the_clip(ratio, advantage, side):
    """Gains are cut where they would go on, losses never."""
    value, gradient, metrics = single(np.log(ratio), advantage, epsilon_low=0.3)
    bound = {"high": 1.2, "low": 0.7, None: ratio}[side]
    assert value == pytest.approx(-bound * advantage, rel=1e-5)
    assert gradient == pytest.approx(0.0 if side else -ratio * advantage, rel=1e-5)
    assert [metrics[f"clip_ratio/{each}_mean"] for each in ("low", "high", "region")] == [
        side == "low", side == "high", side is not None]


def test_the_dual_clip_is_of_negative_advantages():
    assert single(np.log(9.0), -2.0, delta=3.0)[:2] == pytest.approx((6.0, 0.0))
    assert single(np.log(2.0), -2.0, delta=3.0)[:2] == pytest.approx((4.0, 4.0))
    assert single(np.log(9.0), 2.0, delta=3.0)[:2] == pytest.approx((-2.4, 0.0))


def test_cispo_bounds_the_ratio_at_1_and_epsilon_and_keeps_every_gradient():
    value, gradient, metrics = single(np.log(3.0), 2.0, loss="cispo")
    assert (value, gradient) == pytest.approx((2.4, -2.4))
    assert metrics["clip_ratio/high_mean"] == 1
    assert single(0.0, 2.0, loss="cispo")[1] == pytest.approx(-2.0)  # 0.2 of that if epsilon itself were the bound
    assert single(np.log(0.1), -2.0, loss="cispo")[1] == pytest.approx(0.2)


@pytest.mark.parametrize("settings", [{}, RLOO, {"beta": 0.1}])
def test_huge_ratios_stay_finite(settings, batch):
    scores = random_scores(batch)
    far = batch | {name: jnp.full_like(batch[name], -500.0) for name in ("old_logps", "ref_logps", "sampler_logps")}
    far["advantages"] = jnp.ones(8)
    for columns in (far, far | {"ref_logps": jnp.zeros_like(far["ref_logps"])}):
        objective = configure(importance_sampling_correction="sequence_mask", **settings)
        loss, gradient = evaluate(objective, scores, columns)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((loss, gradient)))


def test_masking_the_truncated_leaves_them_in_the_denominator_of_rows_alone(batch):
    scores, kept = random_scores(batch), np.asarray(batch["truncated"]) == 0
    weights = {name: float(grpo(scores, batch, mask_truncated=True, loss_aggregation=name).weight)
               for name in ("token_mean", "sequence_mean")}
    assert weights == {"token_mean": float(jnp.sum(batch["loss_mask"][kept])), "sequence_mean": 8.0}
    alone = batch | {"loss_mask": jnp.where(kept[:, None], batch["loss_mask"], 0.0)}
    same(evaluate(configure(mask_truncated=True), scores, batch), evaluate(grpo, scores, alone), "masked", 0)


def test_sampling_metrics():
    mask = np.array([[0, 1, 1], [0, 1, 0]], np.float32)
    old, sampler = np.full((2, 3), -1.0, np.float32), np.array([[np.nan, -1.5, -0.8], [9, -1.0, np.nan]], np.float32)
    batch = {"loss_mask": mask, "segment_ids": np.ones((2, 3), np.int32), "advantages": np.ones(2, np.float32)}
    scores = random_scores(batch | {"positions": batch["segment_ids"]})._replace(logps=jnp.asarray(old))
    loss = grpo(scores, jax.tree.map(jnp.asarray, batch | {"sampler_logps": sampler}))
    found = {name: total / weight for name, (total, weight) in loss.metrics.items()} | loss.extremes
    ratios = np.exp([0.5, -0.2, 0.0])
    expected = {"logp_difference/mean": 0.7 / 3, "logp_difference/max": 0.5, "importance_ratio/min": ratios.min(),
                "importance_ratio/mean": ratios.mean(), "importance_ratio/max": ratios.max()}
    assert {name: float(value) for name, value in found.items() if name.startswith("sampling/")} == pytest.approx(
        {f"sampling/{name}": value for name, value in expected.items()}, rel=1e-6)


# ------------------------------------------------------------------------------------- whose gradient a KL has

POLICY, REFERENCE = np.array([0.3, -0.5, 0.9, 0.1, -1.2]), np.array([-0.4, 0.2, 0.3, 0.8, -0.6])


def kl(one, other):
    """KL(softmax(one) || softmax(other)), exactly; over the last axis."""
    one, other = jax.nn.log_softmax(one), jax.nn.log_softmax(other)
    return jnp.sum(jnp.exp(one) * (one - other), axis=-1)


def slopes(function, at, step=1e-5):
    """The gradient by central differences."""
    moves, function = step * np.eye(at.size).reshape(-1, *at.shape), jax.jit(function)
    return np.array([(function(at + move) - function(at - move)) / (2 * step) for move in moves]).reshape(at.shape)


def expected_gradient(logits, old, **settings):
    """Of the loss's KL with respect to the logits, where tokens come from `old`: every token is a row, as often as it
    is drawn."""
    column = {"old_logps": jax.nn.log_softmax(jnp.asarray(old)), "ref_logps": jax.nn.log_softmax(REFERENCE)}
    batch = {name: logps[:, None] for name, logps in column.items()}
    batch |= {"loss_mask": jnp.exp(batch["old_logps"]), "segment_ids": jnp.ones((5, 1), int)}
    batch |= {"advantages": jnp.zeros(5)}

    def loss(logits):
        logps = jax.nn.log_softmax(logits)[:, None]
        return grpo(SimpleNamespace(logps=logps, entropy=jnp.zeros_like(logps)), batch, beta=1.0, **settings).total

    return jax.grad(loss)(jnp.asarray(logits))


def gradients_of_kls():
    """By name, of exact expectations: what an estimator's gradient could be."""
    def second_moment(logits):
        logps = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logps) * (logps - jax.nn.log_softmax(REFERENCE)) ** 2) / 2

    return {"zero": np.zeros(5), "reverse": slopes(lambda logits: kl(logits, REFERENCE), POLICY),
            "forward": slopes(lambda logits: kl(REFERENCE, logits), POLICY),
            "second moment": slopes(second_moment, POLICY)}


@pytest.mark.parametrize(("name", "weighted", "whose"), [
    ("k1", False, "zero"), ("k2", False, "reverse"), ("k3", False, "forward"),
    ("k1", True, "reverse"), ("k2", True, "second moment"), ("k3", True, "reverse")])
def test_whose_gradient_a_kl_in_the_loss_has(name, weighted, whose):
    with jax.enable_x64(True):
        found = expected_gradient(POLICY, POLICY, kl=name, kl_weighted=weighted)
        near = {other: np.allclose(found, exact, atol=1e-8) for other, exact in gradients_of_kls().items()}
    assert near == {other: other == whose for other in near}


@pytest.mark.parametrize(("name", "weighted", "right"), [
    ("k1", True, True), ("k3", True, True), ("k2", False, False), ("k2", True, False), ("k3", False, False)])
def test_off_policy_only_weighted_estimates_have_the_gradient_of_the_kl(name, weighted, right):
    with jax.enable_x64(True):
        found = expected_gradient(POLICY, 0.5 * POLICY[::-1], kl=name, kl_weighted=weighted)
        assert np.allclose(found, gradients_of_kls()["reverse"], atol=1e-8) == right


@pytest.mark.parametrize(("name", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_which_estimates_are_unbiased(name, unbiased):
    with jax.enable_x64(True):
        logps, ref_logps = jax.nn.log_softmax(POLICY), jax.nn.log_softmax(REFERENCE)
        mean = jnp.sum(jnp.exp(logps) * KL[name](logps - ref_logps))
        assert np.isclose(mean, kl(POLICY, REFERENCE), rtol=1e-9) == unbiased


V = 3
PAIRS = np.array(list(itertools.product(range(V), range(V))))
"""every completion of two tokens"""


def two_tokens(table):
    """log p of both tokens of every completion; table[0] are the first token's logits, table[1 + v] those after v."""
    logps = jax.nn.log_softmax(jnp.asarray(table))
    return jnp.stack([logps[0, PAIRS[:, 0]], logps[1 + PAIRS[:, 0], PAIRS[:, 1]]], axis=1)


def all_completions(table, advantages, **columns):
    """A batch of every completion, whose mean is an expectation under the table's policy: its share goes with its
    advantage."""
    share = jnp.exp(jnp.sum(two_tokens(table), axis=1))
    ones = jnp.ones(PAIRS.shape)
    return {"loss_mask": ones, "segment_ids": ones.astype(int), "advantages": len(PAIRS) * share * advantages} | columns


def policy_gradient(table, advantages):
    def loss(table):
        logps = two_tokens(table)
        found = grpo(SimpleNamespace(logps=logps, entropy=jnp.zeros_like(logps)), batch, loss_aggregation="constant",
                     constant_length=1.0)
        return found.total / found.weight

    batch = all_completions(table, advantages)
    return -jax.grad(loss)(jnp.asarray(table))


def test_a_kl_in_the_reward_is_of_whole_completions():
    """k1's policy gradient is that of R - KL(completions), through what the first token leads to; k3's is not."""
    random = np.random.default_rng(0)
    table, reference = random.normal(size=(2, 1 + V, V))
    rewards = random.normal(size=len(PAIRS))

    def exact(table):
        logps, ref_logps = (jnp.sum(two_tokens(each), axis=1) for each in (table, reference))
        return jnp.sum(jnp.exp(logps) * (rewards - 0.5 * (logps - ref_logps)))

    with jax.enable_x64(True):
        given = two_tokens(table), two_tokens(reference), jnp.ones(PAIRS.shape)
        wanted = slopes(exact, table)
        found = {name: penalised(jnp.asarray(rewards), *given, 0.5, name) for name in KL}
        share = jnp.exp(jnp.sum(given[0], axis=1))
        values = {name: bool(np.isclose(jnp.sum(share * each), exact(table))) for name, each in found.items()}
        right = {name: np.allclose(policy_gradient(table, each), wanted, atol=1e-8) for name, each in found.items()}
    assert values == {"k1": True, "k2": False, "k3": True}
    assert right == {"k1": True, "k2": False, "k3": False}


def test_the_gradient_is_that_of_the_expected_reward():
    random = np.random.default_rng(1)
    table, rewards = random.normal(size=(1 + V, V)), random.normal(size=len(PAIRS))
    with jax.enable_x64(True):
        wanted = slopes(lambda table: jnp.sum(jnp.exp(jnp.sum(two_tokens(table), axis=1)) * rewards), table)
        np.testing.assert_allclose(policy_gradient(table, rewards), wanted, atol=1e-8)


# --------------------------------------------------------------------------------------------------- advantages

def plain(rewards, kind):
    """What ADVANTAGES say, group by group, without the rewards that are NaN."""
    found = np.zeros(rewards.shape)
    for each, row in zip(found, rewards, strict=True):
        scored = np.flatnonzero(~np.isnan(row))
        for i in scored if len(scored) > 1 else []:
            others = row[scored[scored != i]]
            centred = row[i] - row[scored].mean()
            each[i] = {"mean": centred, "group": centred / (row[scored].std(ddof=1) + 1e-4),
                       "batch": centred / (rewards[~np.isnan(rewards)].std(ddof=1) + 1e-4),
                       "leave_one_out": row[i] - others.mean()}[kind]
    return found


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_advantages_equal_plain_ones_and_trls(kind):
    """With a reward that is missing, a group of which one is left, one without any, and one where all are equal."""
    rewards = load()["rewards"]
    with jax.enable_x64(True):
        found = ADVANTAGES[kind](rewards)
        jitted = jax.jit(ADVANTAGES[kind])(rewards)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, plain(rewards, kind), atol=1e-12)
    np.testing.assert_allclose(found, load()[f"advantages/{kind}"], atol=1e-12)
    np.testing.assert_allclose(jitted, found, atol=1e-12)
    assert not np.any(found[2:])
    assert not np.any(found[np.isnan(rewards)])


def test_penalised_leave_one_out_equals_trls_rloo():
    rewards, of_row = load()["rewards"], np.arange(20) % 8
    with jax.enable_x64(True):
        given = (jnp.asarray(load()[name][of_row]) for name in ("logps", "ref_logps", "loss_mask"))
        lowered = penalised(jnp.asarray(rewards.ravel()), *given, beta=0.1)
        found = ADVANTAGES["leave_one_out"](lowered.reshape(rewards.shape))
    np.testing.assert_allclose(found, load()["advantages/leave_one_out_penalised"], atol=1e-12)
    assert np.any(found[4])  # equal rewards, but not equally far from the reference


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_a_group_of_one_is_refused(kind):
    with pytest.raises(ValueError, match="nothing to be compared with; set group_size"):
        ADVANTAGES[kind](jnp.ones((4, 1)))


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_advantages_without_any_reward_are_0(kind):
    assert not np.any(ADVANTAGES[kind](jnp.full((2, 3), jnp.nan)))


# ------------------------------------------------------------------------------------------------------- errors

@pytest.mark.parametrize(("settings", "message"), [
    ({"importance_sampling_level": "row"},
     "no importance_sampling_level is called row; there are token, sequence, sequence_token, product"),
    ({"loss": "ppo"}, "no loss is called ppo; there are clip, cispo"),
    ({"loss_aggregation": "mean"}, "no loss_aggregation is called mean; there are token_mean, sequence_mean, constant"),
    ({"kl": "k4"}, "no kl is called k4; there are k1, k2, k3"),
    ({"importance_sampling_correction": "tis"},
     "no importance_sampling_correction is called tis; there are none, token_truncate"),
    ({"epsilon": 0.2}, "no setting is called epsilon; there are epsilon_low, epsilon_high"),
    ({"epsilon_low": -0.1}, "epsilon_low is -0.1 but must be at least 0"),
    ({"epsilon_high": float("nan")}, "epsilon_high is nan but"),
    ({"beta": -1.0}, "beta is -1.0 but must be at least 0"),
    ({"delta": 1.1}, "delta is 1.1 but must be above 1 \\+ epsilon_high, which is 1.2"),
    ({"delta": 3.0, "loss": "cispo"}, "delta is of the loss clip"),
    ({"loss_aggregation": "constant"}, "needs a constant_length above 0, not None"),
    ({"constant_length": 5.0}, "constant_length is of the aggregation constant"),
    ({"kl_weighted": True}, "while beta is 0"), ({"kl": "k2"}, "kl says nothing while beta is 0"),
    ({"epsilon_low": 0.1, "loss": "cispo"}, "epsilon_low is of the loss clip, not of cispo"),
    ({"importance_sampling_floor": 0.5}, "importance_sampling_floor is of the correction token_truncate, token_mask"),
    ({"importance_sampling_cap": 2.0}, "importance_sampling_cap is of the correction token_truncate, token_mask"),
    ({"importance_sampling_correction": "token_mask", "importance_sampling_cap": 0.5,
      "importance_sampling_floor": 0.5}, "must be above importance_sampling_floor")])
def test_settings_that_make_no_loss(settings, message):
    with pytest.raises(ValueError, match=message):
        configure(**settings)


@pytest.mark.parametrize(("settings", "column"), [
    ({}, "advantages"), ({"beta": 0.1}, "ref_logps"),
    ({"importance_sampling_correction": "token_mask"}, "sampler_logps"),
    ({"mask_truncated": True}, "truncated")])
def test_a_missing_column_is_named(settings, column, batch):
    del batch[column]
    with pytest.raises(KeyError, match=column):
        configure(**settings)(random_scores(batch), batch)


def test_penalised_names_the_kls():
    with pytest.raises(ValueError, match="no kl is called k4; there are k1, k2, k3"):
        penalised(jnp.ones(1), *[jnp.ones((1, 2))] * 3, beta=0.1, kl="k4")


# ------------------------------------------------------------------------------------------ tasks to be solved

def train(reward, table, objective, kind, updates=1, steps=150, prompts=8, group=8, rate=0.1):
    """The table's logits [T, V], trained on its own samples; token 0 ends a completion. Two updates a rollout have
    old_logps."""
    length, optimizer = len(table), optax.adam(rate)

    def rollout(table, key):
        tokens = jax.random.categorical(key, jnp.broadcast_to(table, (prompts * group, *table.shape)))
        before = jnp.cumsum(tokens == 0, axis=1) - (tokens == 0)
        mask = (before == 0).astype(jnp.float32)  # the end token is a target, what follows is not
        advantages = ADVANTAGES[kind](reward(tokens, mask).reshape(prompts, group)).ravel()
        old = jnp.where(mask != 0, score(table, tokens).logps, 0.0)
        batch = {"loss_mask": mask, "segment_ids": jnp.ones_like(tokens), "advantages": advantages, "old_logps": old}
        return tokens, batch

    def score(table, tokens):
        logps = jax.nn.log_softmax(table)
        entropy = -jnp.sum(jnp.exp(logps) * logps, axis=-1)
        return SimpleNamespace(logps=logps[jnp.arange(length), tokens], entropy=jnp.broadcast_to(entropy, tokens.shape))

    def update(carry, _, tokens, batch):
        def mean(table):
            loss = objective(score(table, tokens), batch)
            return loss.total / loss.weight

        table, state = carry
        moves, state = optimizer.update(jax.grad(mean)(table), state)
        return (optax.apply_updates(table, moves), state), None

    def step(carry, key):
        return jax.lax.scan(functools.partial(update, **dict(zip(("tokens", "batch"), rollout(carry[0], key)))), carry,
                            length=updates)

    @jax.jit
    def run(table, keys):
        return jax.lax.scan(step, (table, optimizer.init(table)), keys)[0][0]

    return jax.nn.softmax(run(table, jax.random.split(jax.random.key(0), steps)))


def first_is_quick(choices):
    first, *others = choices
    return [first, *(pytest.param(each, marks=pytest.mark.slow) for each in others)]


@pytest.mark.parametrize("kind", first_is_quick(ADVANTAGES))
def test_a_bandit_finds_its_best_arm(kind):
    arms = jnp.asarray([0.1, 0.5, 0.3, 0.9, 0.6])
    start = jnp.asarray([[2.0, 1.0, 0.0, -1.0, 0.0]])  # the best arm is the rarest
    found = train(lambda tokens, mask: arms[tokens[:, 0]], start, configure(), kind)
    assert float(found[0, 3]) > 0.95, found


TARGET = jnp.asarray([2, 1, 3, 0, 0])
"""of which the last token comes after the end, so that it is no target"""


def resemblance(tokens, mask):
    """The share of the target that is hit before the completion ends; 0 where it does not end."""
    hit = jnp.sum((tokens == TARGET) * mask, axis=1) / 4
    return jnp.where(jnp.any(tokens == 0, axis=1), hit, 0.0)


@pytest.mark.parametrize("settings", first_is_quick([{}, GSPO, {"loss": "cispo"}, DR_GRPO]))
def test_a_sequence_is_learned_with_its_end(settings):
    found = train(resemblance, jnp.zeros((5, 4)), configure(**settings), "group", updates=2)
    assert np.array_equal(jnp.argmax(found[:4], axis=-1), TARGET[:4])
    assert float(jnp.prod(jnp.max(found[:4], axis=-1))) > 0.9
