"""Drawing: frequencies of many draws against exact distributions, by chi-square, with top-k, top-p and min-p too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, random_variables

from errors import InputError
from models.transformer import Transformer, output_kernel
from rollouts.engine import Engine
from rollouts.generate import generate
from rollouts.sampling import make_controls, sample, truncate

DRAWS = 20_000
CONTROLS = {"all": {}, "temperature": {"temperature": 0.6}, "top_k": {"top_k": 5}, "top_p": {"top_p": 0.7},
            "min_p": {"min_p": 0.3}, "together": {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.1}}
SLOW = pytest.mark.slow
QUICK = [how if how in ("all", "together") else pytest.param(how, marks=SLOW) for how in CONTROLS]
TOGETHER = [how if how == "together" else pytest.param(how, marks=SLOW) for how in CONTROLS]


def exact(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution by sorting, in float64."""
    logits = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-logits)
    p = np.exp(logits - logits.max())
    keep = np.zeros(len(p), bool)
    keep[order[: top_k or None]] = True
    p = np.where(keep, p, 0) / np.sum(p[keep])
    before = np.cumsum(p[order]) - p[order]  # what likelier tokens have already
    keep[order] &= before < top_p
    p = np.where(keep, p, 0) / np.sum(p[keep])
    p = np.where(p >= min_p * p.max(), p, 0)
    return p / p.sum()


def assert_drawn_from(tokens, p):
    """Chi-square at most 5 deviations (and 5) above its mean; cells of few expected draws are one; none beyond p."""
    found, expected = np.bincount(tokens, minlength=len(p)), len(tokens) * p
    assert not found[p == 0].any()
    few = expected < 5
    cells = [(f, e) for f, e in zip(found[~few], expected[~few])] + [(found[few].sum(), expected[few].sum())]
    statistic = sum((f - e) ** 2 / e for f, e in cells if e > 0)
    freedom = max(1, len(cells) - 1)
    assert statistic < freedom + 5 * np.sqrt(2 * freedom) + 5, (statistic, freedom)


@pytest.mark.parametrize("how", TOGETHER)
def test_a_tiny_models_first_and_second_token(how):
    model, params, prompt = Transformer(CONFIG), random_variables()["params"], [3, 14, 15]
    engine = Engine(model, 4000, page=8)
    engine.load({"params": params})
    completions = generate(engine, [prompt], jax.random.key(5), max_new_tokens=2, group_size=DRAWS,
                           controls=make_controls(**CONTROLS[how]))

    def next_logits(tokens):
        tokens = jnp.asarray(tokens)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = model.apply({"params": params}, tokens, positions, jnp.ones_like(tokens))
        return hidden[:, -1] @ output_kernel(CONFIG, params)

    first = exact(next_logits([prompt])[0], **CONTROLS[how])
    second = np.stack([exact(each, **CONTROLS[how]) for each in
                       next_logits([[*prompt, token] for token in range(CONFIG.vocab_size)])])
    drawn = np.asarray([each.tokens for each in completions])
    assert_drawn_from(drawn[:, 0], first)
    assert_drawn_from(drawn[:, 1], first @ second)
    logps = np.asarray([each.logps for each in completions])
    np.testing.assert_allclose(logps[:, 0], np.log(first[drawn[:, 0]]), atol=1e-4)
    np.testing.assert_allclose(logps[:, 1], np.log(second[drawn[:, 0], drawn[:, 1]]), atol=1e-4)


@pytest.mark.parametrize("how", QUICK)
def test_a_large_vocabulary_with_rare_tokens(how):
    logits = 4 * np.random.default_rng(0).normal(size=1000).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), DRAWS)
    many = jnp.broadcast_to(jnp.asarray(logits), (DRAWS, 1000))
    tokens, logps = jax.jit(sample)(many, keys, make_controls(**CONTROLS[how]))
    p = exact(logits, **CONTROLS[how])
    assert_drawn_from(np.asarray(tokens), p)
    np.testing.assert_allclose(logps, np.log(p[tokens]), atol=1e-4)


def test_what_is_cut_is_what_sorting_cuts():
    logits = np.random.default_rng(1).normal(size=(8, 300)).astype(np.float32)
    for how in CONTROLS.values():
        kept = truncate(jnp.asarray(logits), make_controls(**how | {"temperature": 1.0}))
        for row, each in zip(logits, kept, strict=True):
            np.testing.assert_array_equal(np.isfinite(each), exact(row, **how | {"temperature": 1.0}) > 0)


def test_equal_logits_stay_together():
    kept = truncate(jnp.asarray([[1.0, 0.0, 0.0, -1.0]]), make_controls(top_k=2))
    np.testing.assert_array_equal(np.isfinite(kept[0]), [True, True, True, False])


def test_temperature_0_takes_no_notice_of_cuts_and_scores_the_whole_distribution():
    logits = jnp.asarray([[0.0, 2.0, 1.0]])
    token, logp = sample(logits, jax.random.split(jax.random.key(0), 1), make_controls(0.0, 1, 0.5, 0.5))
    assert token[0] == 1
    assert logp[0] == pytest.approx(float(jax.nn.log_softmax(logits)[0, 1]), abs=1e-6)


@pytest.mark.parametrize(("flags", "line"), [({"temperature": -1.0}, "temperature must be 0 or more"),
                                             ({"temperature": np.nan}, "temperature must"), ({"top_k": -1}, "top-k"),
                                             ({"top_p": 0.0}, "top-p"), ({"top_p": 1.5}, "top-p"),
                                             ({"min_p": -0.1}, "min-p")])
def test_bad_controls_are_one_line(flags, line):
    with pytest.raises(InputError, match=line):
        make_controls(**flags)


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-45, 1e-40, 1.2e-38, 1e-31])
def test_a_temperature_that_float32_cannot_divide_by_is_0(temperature):
    logits, keys = jnp.asarray([[1.0, 3.0, 2.0]]), jax.random.split(jax.random.key(0), 1)
    controls = make_controls(temperature)
    assert controls.temperature == 0
    tokens, logps = sample(logits, keys, controls)
    assert tokens.item() == 1
    np.testing.assert_allclose(logps, jax.nn.log_softmax(logits)[:, 1], rtol=1e-6)


@pytest.mark.parametrize("temperature", [1e-30, 1e-20])
def test_the_smallest_temperature_is_finite(temperature):
    logits, keys = jnp.asarray([[100.0, 300.0, 200.0]]), jax.random.split(jax.random.key(0), 1)
    tokens, logps = sample(logits, keys, make_controls(temperature))
    assert (tokens.item(), logps.item()) == (1, 0.0)


@pytest.mark.parametrize(("controls", "words"), [
    ({"top_k": 3_000_000_000}, "top-k must be 2147483647 at the most, not 3000000000"),
    ({"top_p": 1e-50}, "top-p must be above 0"), ({"temperature": -1e-320}, "temperature must be 0 or more"),
    ({"min_p": float("nan")}, "min-p must be from 0")])
def test_controls_that_leave_no_distribution(controls, words):
    with pytest.raises(InputError, match=words):
        make_controls(**controls)
