"""The embedding's lookup and the vocabulary projection on meshes: values and gradients as on one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.embedding import look_up
from models.linear import matmul
from models.projection import statistics
from sharding.mesh import MeshConfig, make_layout

MESHES = [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(slice=2, data=1, fsdp=4)]
MIXED = MeshConfig(data=2, fsdp=2, tensor=2, rules=("embed=fsdp+tensor", "vocab=none", "heads=none"))
"""the embedding is split over more than rows are"""


@pytest.mark.parametrize("config", [*MESHES, MIXED])
@pytest.mark.parametrize("rows", [8, 3])  # 3 divide over nothing
def test_the_ends_of_a_model(config, rows):
    layout, keys = make_layout(config), jax.random.split(jax.random.key(0), 4)
    hidden, table = jax.random.normal(keys[0], (rows, 13, 16)), jax.random.normal(keys[1], (64, 16))
    tokens, weights = jax.random.randint(keys[2], (rows, 13), 0, 64), jax.random.normal(keys[3], (4, rows, 13))

    def both(hidden, table, layout):
        found = look_up(table, tokens, jnp.float32, layout)
        tied = statistics(hidden + found, table, tokens, 0.7, tied=True, layout=layout)
        apart = statistics(hidden, table.T, tokens, layout=layout)
        return sum(jnp.sum(one * weight) for each in (tied, apart) for one, weight in zip(each, weights, strict=False))

    ours, theirs = (jax.jit(jax.value_and_grad(lambda *arrays: both(*arrays, each), (0, 1)))(hidden, table)  # noqa: B023
                    for each in (layout, None))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("config", [MESHES[0], MIXED])
@pytest.mark.parametrize(("inner", "features"), [((16,), (32,)), ((16,), (4, 8)), ((2, 8), (32,))])
def test_the_matmul_of_a_kernel_in_parts(config, inner, features):
    """With heads as a dimension of their own, before it and behind it, too."""
    layout, keys = make_layout(config), jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(keys[0], (8, 5, *inner)), jax.random.normal(keys[1], (16, 32))

    def ours(x, kernel):
        return jnp.sum(jnp.sin(matmul(x, kernel, ("embed", "mlp" if config != MIXED else "heads"), layout, features)))

    def theirs(x, kernel):
        return jnp.sum(jnp.sin(x.reshape(8, 5, 16) @ kernel))

    found, expected = (jax.jit(jax.value_and_grad(each, (0, 1)))(x, kernel) for each in (ours, theirs))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_summed_over_devices_in_the_dtype_that_is_asked_for(dtype):
    layout = make_layout(MeshConfig(data=1, fsdp=8, reduce_dtype=dtype))
    hidden, head = jax.ShapeDtypeStruct((8, 16, 16), "bfloat16"), jax.ShapeDtypeStruct((16, 64), "float32")

    def total(hidden, head):
        return jnp.sum(statistics(hidden, head, jnp.zeros((8, 16), jnp.int32), layout=layout).logp)

    text = jax.jit(jax.grad(total, 1)).lower(hidden, head).as_text()
    scattered = re.search(r'"stablehlo.reduce_scatter".*?\) : \(tensor<16x64x(\w+)>\)', text, re.DOTALL)
    assert scattered[1] == {"float32": "f32", "bfloat16": "bf16"}[dtype]


def test_one_device_gathers_nothing():
    layout, table = make_layout(MeshConfig(), jax.devices()[:1]), jnp.ones((64, 16))
    tokens = jnp.zeros((2, 5), int)
    gradient = jax.grad(lambda hidden: jnp.sum(statistics(hidden, table, tokens, tied=True, layout=layout).logp))
    assert "all_gather" not in jax.jit(gradient).lower(jnp.ones((2, 5, 16))).as_text()


def test_of_a_gradients_factors_the_much_narrower_one_is_turned():
    """The barrier keeps the compiler from turning the other one, 32 wide, instead."""
    def barriers(width):
        gradient = jax.grad(lambda kernel: jnp.sum(matmul(jnp.ones((2, 5, 32)), kernel, ("embed", "rank"), None)))
        return jax.jit(gradient).lower(jnp.ones((32, width))).as_text().count("optimization_barrier")

    assert (barriers(4), barriers(8)) == (1, 0)
