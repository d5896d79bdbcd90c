"""FLOPs of a trace: loops, branches, devices and kernels."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from planning.flops import Flops, count_flops

A, B = jnp.ones((4, 8)), jnp.ones((8, 8))
ONE = 2 * 4 * 8 * 8


def flops(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments))


@pytest.mark.parametrize(("function", "times"), [
    (lambda a, b: a @ b, 1),
    (lambda a, b: jax.lax.scan(lambda a, _: (a @ b, None), a, None, length=5)[0], 5),
    (lambda a, b: jax.lax.map(lambda _: jax.lax.map(lambda _: a @ b, jnp.arange(3)), jnp.arange(2)), 6),
    (lambda a, b: jax.lax.while_loop(lambda a: a.sum() < 3, lambda a: a @ b, a), 1),
    (lambda a, b: jax.lax.cond(a.sum() > 0, lambda: a @ b @ b, lambda: a @ b), 2),
    (lambda a, b: jax.grad(lambda a: jax.checkpoint(lambda a: jnp.sin(a @ b) @ b)(a).sum())(a), 5)])
def test_products_as_often_as_they_run(function, times):
    assert flops(function, A, B) == Flops(times * ONE, 0)


def test_what_each_device_does_counts_for_all():
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("x",))
    spec = jax.sharding.PartitionSpec("x")
    function = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()),
                             out_specs=spec)
    assert flops(function, A, B).products == ONE


@pytest.mark.parametrize(("grid", "blocks"), [((3, 2, 2), 9), ((3, 2, 4), 24)])
def test_a_causal_kernel_counts_blocks_on_and_below_the_diagonal(grid, blocks):
    def kernel(a, b, out):
        out[...] = a[...] @ b[...]

    function = pl.pallas_call(kernel, grid=grid, out_shape=jax.ShapeDtypeStruct((4, 8), jnp.float32), interpret=True)
    assert flops(function, A, B) == Flops(0, blocks * ONE)
