"""Rotary positions: the ways of platforms are one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import rope
from models.config import PRESETS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_halves_that_a_matmul_exchanges_are_those(dtype):
    """Bit by bit, and so are gradients up to float32's rounding of their sums."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, weights = (jax.random.normal(key, (2, 5, 3, 64)) for key in keys)
    x = x.astype(dtype)
    cos, sin = (each[:, :, None] for each in rope.cos_sin(PRESETS["llama3.2-1b"], jnp.arange(10).reshape(2, 5) * 700))

    def total(x, way):
        return jnp.sum(way(x, cos, sin).astype(jnp.float32) * weights)

    ways = rope._by_halves, rope._by_matmul
    with jax.default_matmul_precision("highest"):
        found, expected = (way(x, cos, sin) for way in ways)
        gradients = [jax.grad(functools.partial(total, way=way))(x).astype(jnp.float32) for way in ways]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(*gradients, rtol=2**-7 if dtype == "bfloat16" else 1e-6, atol=1e-6)


def test_tpus_take_the_matmul_and_others_do_not():
    config, x = PRESETS["llama3.2-1b"], jax.ShapeDtypeStruct((1, 4, 2, 64), "bfloat16")

    def turned(x):
        return rope.rotate(x, *rope.cos_sin(config, jnp.zeros((1, 4), jnp.int32)))

    texts = {name: jax.jit(turned).trace(x).lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cpu")}
    assert {name: "dot_general" in text for name, text in texts.items()} == {"tpu": True, "cpu": False}
