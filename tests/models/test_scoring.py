"""The scorer, chunk by chunk, against a plain one: values, gradients, packing, and what it never builds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, jitted_score, packed, padded, random_variables, rows

from models import projection
from models.projection import statistics
from models.transformer import Transformer, output_kernel

MODEL = Transformer(CONFIG)


@pytest.fixture(scope="module")
def variables():
    return random_variables()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(projection, "logits_at_a_time", lambda layout: 9 * CONFIG.vocab_size)


def plain(hidden, kernel, tokens, temperature):
    """log softmax of all logits at once, in numpy float64."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64) / temperature
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropy = -(np.exp(logps) * logps).sum(-1)
    collision = np.log((np.exp(logps) ** 2).sum(-1))
    chosen = np.take_along_axis(logps, tokens[..., None], -1)[..., 0]
    return chosen, entropy, np.log(np.exp(logits).sum(-1)), collision, tokens == logits.argmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_the_plain_computation(small_chunks, temperature):
    random = np.random.default_rng(0)
    hidden, kernel = random.normal(size=(2, 13, 8)).astype("f"), random.normal(size=(8, 64)).astype("f")
    tokens = random.integers(0, 64, (2, 13)).astype(np.int32)
    tokens[:, ::3] = (hidden @ kernel).argmax(-1)[:, ::3]
    assert projection._chunk(2 * 13, 64, 9 * 64) == 9
    scores = statistics(jnp.asarray(hidden), jnp.asarray(kernel), jnp.asarray(tokens), temperature)
    for ours, theirs in zip(scores, plain(hidden, kernel, tokens, temperature), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_gradients_equal_those_of_the_plain_computation(small_chunks):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, kernel = jax.random.normal(keys[0], (2, 13, 8)), jax.random.normal(keys[1], (8, 64))
    tokens = jax.random.randint(keys[2], (2, 13), 0, 64)

    def chunked(hidden, kernel):
        scores = statistics(hidden, kernel, tokens)
        return jnp.sum(scores.logp * jnp.arange(13)) + jnp.sum(scores.entropy**2) + jnp.sum(scores.log_z**2) + (
            jnp.sum(scores.log_collision**2))

    def direct(hidden, kernel):
        logps = jax.nn.log_softmax(hidden @ kernel)
        entropy, log_z = -jnp.sum(jnp.exp(logps) * logps, -1), jax.nn.logsumexp(hidden @ kernel, axis=-1)
        chosen = jnp.take_along_axis(logps, tokens[..., None], -1)[..., 0]
        return jnp.sum(chosen * jnp.arange(13)) + jnp.sum(entropy**2) + jnp.sum(log_z**2) + (
            jnp.sum(jax.nn.logsumexp(2 * logps, axis=-1) ** 2))

    for ours, theirs in zip(jax.grad(chunked, (0, 1))(hidden, kernel), jax.grad(direct, (0, 1))(hidden, kernel),
                            strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_index_t_speaks_of_token_t(variables):
    batch = padded(rows([9]))
    hidden = MODEL.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"])
    logits = hidden @ output_kernel(CONFIG, variables["params"])
    scores = jitted_score(MODEL, variables, batch)
    assert scores.logps[0, 0] == 0
    assert scores.entropy[0, 0] == 0
    assert scores.log_z[0, 0] == 0
    np.testing.assert_allclose(scores.log_z[0, 4], jax.nn.logsumexp(logits[0, 3]), rtol=1e-5)
    expected = jax.nn.log_softmax(logits[0, 3])[batch["tokens"][0, 4]]
    np.testing.assert_allclose(scores.logps[0, 4], expected, rtol=1e-5)


def test_packed_rows_score_as_alone(variables):
    some = rows([9, 14, 5, 20, 7])
    alone, together = jitted_score(MODEL, variables, padded(some)), packed(some, 32)
    scores = jitted_score(MODEL, variables, together)
    segments = [(row, segment) for row in range(len(together["tokens"]))
                for segment in range(1, together["segment_ids"][row].max() + 1)]
    matched = 0
    for row, segment in segments:
        at = together["segment_ids"][row] == segment
        tokens = together["tokens"][row, at]
        index = next(i for i, each in enumerate(some) if np.array_equal(each.tokens, tokens))
        for one, other in zip(scores, alone, strict=True):
            np.testing.assert_allclose(one[row, at], other[index, : at.sum()], atol=1e-5)
        matched += 1
    assert matched == len(some)
    assert not any(np.any(np.asarray(each)[together["segment_ids"] == 0]) for each in scores)


def test_huge_logits_stay_finite():
    hidden, kernel = jnp.full((1, 2, 1), 1000.0), jnp.arange(4.0)[None]

    def total(kernel):
        return jnp.sum(statistics(hidden, kernel, jnp.zeros((1, 2), int)).log_z)

    value, gradient = jax.value_and_grad(total)(kernel)
    assert float(value) == pytest.approx(6000)
    np.testing.assert_allclose(gradient, [[0, 0, 0, 2000]])


def test_no_array_of_all_logits_exists(monkeypatch):
    monkeypatch.setattr(projection, "logits_at_a_time", lambda layout: 2**14)
    batch, length, vocab = 2, 64, 1024
    shapes = [jax.ShapeDtypeStruct((batch, length, 16), "float32"), jax.ShapeDtypeStruct((16, vocab), "float32"),
              jax.ShapeDtypeStruct((batch, length), "int32")]

    def total(hidden, kernel, tokens):
        return sum(jnp.sum(each) for each in statistics(hidden, kernel, tokens))

    text = jax.jit(jax.value_and_grad(total, (0, 1))).lower(*shapes).compile().as_text()
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"\w\[([\d,]+)\]", text)]
    assert max(sizes) < batch * length * vocab / 2


def test_bfloat16_matmuls_accumulate_their_gradient_in_float32(monkeypatch):
    """Many small chunks add up to what one big chunk gives, to float32's precision and not to bfloat16's."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (2, 65, 8)).astype(jnp.bfloat16)
    kernel, tokens = jax.random.normal(keys[1], (8, 64)), jax.random.randint(keys[2], (2, 65), 0, 64)

    def gradient(chunk):
        monkeypatch.setattr(projection, "logits_at_a_time", lambda layout: chunk * 2 * 64)
        return jax.grad(lambda kernel: jnp.sum(statistics(hidden, kernel, tokens).logp))(kernel)

    small, whole = gradient(1), gradient(65)
    assert small.dtype == jnp.float32
    np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-4)


def test_lora_pays_for_no_gradient_of_the_vocabulary():
    def total(hidden, kernel, tokens):
        return jnp.sum(statistics(hidden, kernel, tokens).logp)

    shapes = [jax.ShapeDtypeStruct((2, 16, 8), "float32"), jax.ShapeDtypeStruct((8, 64), "float32"),
              jax.ShapeDtypeStruct((2, 16), "int32")]
    text = [jax.jit(jax.grad(total, wrt)).lower(*shapes).compile().as_text() for wrt in (0, (0, 1))]
    dots = [each.count(" dot(") + each.count("custom-call(") for each in text]
    assert dots[0] < dots[1]


def test_the_gradient_of_a_tied_embedding_in_bfloat16():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, embedding = jax.random.normal(keys[0], (2, 64, 32)), 0.1 * jax.random.normal(keys[1], (128, 32))
    tokens = jax.random.randint(keys[2], (2, 64), 0, 128)

    @jax.jit
    def gradient(hidden):
        return jax.grad(lambda stored: jnp.sum(statistics(hidden, stored, tokens, tied=True).logp))(embedding)

    np.testing.assert_allclose(gradient(hidden.astype(jnp.bfloat16)), gradient(hidden), atol=0.05)


def test_statistics_that_nobody_reads_are_not_computed():
    shapes = [jax.ShapeDtypeStruct((2, 16, 8), "float32"), jax.ShapeDtypeStruct((8, 64), "float32")]
    tokens = jnp.zeros((2, 16), jnp.int32)

    def sums(read):
        def total(hidden, kernel):
            return sum(jnp.sum(each) for each in read(statistics(hidden, kernel, tokens)))

        return jax.jit(jax.value_and_grad(total)).lower(*shapes).compile().as_text().count(" reduce(")

    assert sums(lambda found: found[:1]) < sums(lambda found: found[:2]) < sums(lambda found: found)
