"""Attention over pages: the Pallas kernel, interpreted, is as plain XLA, on one device and on a mesh."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from models.paged_attention import attend_to_pages, write_to_pages
from models.places import Places
from sharding.mesh import MeshConfig, make_layout

BATCH, HEADS, KV_HEADS, HEAD_DIM, SIZE, PAGES, WIDTH = 4, 4, 2, 128, 8, 9, 4


def case(shares=1, dtype=jnp.bfloat16):
    """Rows with contexts of 1, 9, 20 and 32 positions, in pages that lie anywhere."""
    random = np.random.default_rng(0)
    pool = (shares, KV_HEADS, PAGES * 2, SIZE, HEAD_DIM)
    keys, values = (jnp.asarray(random.standard_normal(pool), dtype) for _ in range(2))
    q = jnp.asarray(random.standard_normal((BATCH, 1, HEADS, HEAD_DIM)), dtype)
    of_share = BATCH // shares
    table = np.concatenate([random.permutation(PAGES * 2)[: of_share * WIDTH].reshape(of_share, WIDTH)
                            for _ in range(shares)])
    positions = jnp.asarray([[0], [8], [19], [31]], jnp.int32)
    return q, keys, values, Places(positions, jnp.ones_like(positions), table=jnp.asarray(table, jnp.int32))


def close(found, expected):
    """Within two roundings to bfloat16."""
    np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), rtol=2**-7, atol=2**-8)


attend = jax.jit(attend_to_pages, static_argnums=(4, 5, 6))


def test_the_kernel_is_as_plain_xla():
    arguments = case(2)
    expected = attend(*arguments, None, "xla", None)
    with pltpu.force_tpu_interpret_mode():
        found = attend(*arguments, None, "flash", None)
    close(found, expected)


@pytest.mark.parametrize(("window", "dtype"), [(5, jnp.bfloat16), (None, jnp.float32)])
def test_what_the_kernel_cannot_do_takes_plain_xla(window, dtype):
    arguments = case(dtype=dtype)
    np.testing.assert_array_equal(attend(*arguments, window, "flash", None), attend(*arguments, window, "xla", None))


@pytest.mark.parametrize("config", [None, MeshConfig(data=2, tensor=2), MeshConfig(tensor=4)])
def test_rows_are_written_as_by_a_scatter(config):
    _, keys, _, places = case(2)
    new = jnp.ones((BATCH, 1, KV_HEADS, HEAD_DIM), keys.dtype)
    positions = places.positions.at[1].set(-1)
    layout = make_layout(config, jax.devices()[:4]) if config else None
    expected = write_to_pages(keys, new, places.table, positions, "xla", None)
    found = jax.jit(write_to_pages, static_argnums=(4, 5))(keys, new, places.table, positions, "flash", layout)
    np.testing.assert_array_equal(found, expected)
    assert np.sum(np.any(expected != keys, axis=(1, 4))) == BATCH - 1


@pytest.mark.slow
def test_the_kernel_on_a_mesh():
    arguments = case(2)
    expected = attend(*arguments, None, "xla", None)
    layout = make_layout(MeshConfig(data=2, tensor=2), jax.devices()[:4])
    with pltpu.force_tpu_interpret_mode():
        found = attend(*arguments, None, "flash", layout)
    close(found, expected)
