"""The matmul of a layer's activations with its kernel, which lies in parts: gathered for each use, its gradient reduced
to the parts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from sharding.layout import Layout, constrain, names_of


def matmul(x: Float[Array, "B T in"], kernel: Float[Array, "in out"], axes: tuple[str, str],
           layout: Layout | None) -> Float[Array, "B T out"]:
    """x @ kernel, in x's dtype.

    Over mesh axes that split rows, too, the kernel is gathered, in x's dtype, once here and once in the backward pass:
    what is kept in between are the parts. Its gradient is summed over devices in the layout's reduce_dtype, and each
    gets its part of it.
    """
    return _matmul(axes, None if layout is None or layout.mesh.size == 1 else layout, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _matmul(axes: tuple[str, str], layout: Layout | None, x: Array, kernel: Array) -> Array:
    return x @ _gathered(axes, layout, kernel.astype(x.dtype))


def _keep(axes: tuple[str, str], layout: Layout | None, x: Array, kernel: Array) -> tuple[Array, Any]:
    return _matmul(axes, layout, x, kernel), (x, kernel)


def _give_back(axes: tuple[str, str], layout: Layout | None, saved: Any, cotangent: Array) -> tuple[Array, Array]:
    x, kernel = saved
    to_x = jnp.einsum("bto,io->bti", cotangent, _gathered(axes, layout, kernel.astype(x.dtype)))
    # written as x^T dy: JAX's own, (dy^T x)^T, has XLA's CPU backend transpose all of dy
    if layout is None:
        return to_x, jnp.einsum("bti,bto->io", x, cotangent).astype(kernel.dtype)
    to_kernel = jnp.einsum("bti,bto->io", x, cotangent, preferred_element_type=jnp.dtype(layout.reduce_dtype))
    to_kernel = jax.lax.with_sharding_constraint(to_kernel, layout.sharding(*axes))
    return to_x, to_kernel.astype(kernel.dtype)


_matmul.defvjp(_keep, _give_back)


def _gathered(axes: tuple[str, str], layout: Layout | None, kernel: Array) -> Array:
    """Whole over the mesh axes that split rows."""
    if layout is None:
        return kernel
    rows = [name for entry in layout.entries(("batch",)) for name in names_of(entry)]
    entries = [tuple(name for name in names_of(entry) if name not in rows) or None for entry in layout.entries(axes)]
    return jax.lax.with_sharding_constraint(kernel, NamedSharding(layout.mesh, PartitionSpec(*entries)))


def add_up(layout: Layout | None, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """What is added to the residual stream, summed over the devices whose kernels are parts of one, in x's dtype.

    Without the barrier the compiler would sum in the residual's dtype, float32, and exchange twice as much.
    """
    if layout is None or layout.mesh.size == 1:
        return x
    return jax.lax.optimization_barrier(constrain(layout, x, "batch", "residual_length", "features"))


def aside(layout: Layout | None, x: Float[Array, "B T in"]) -> Float[Array, "B T in"]:
    """x, for the adapters of linear layers that all read x: their gradients come together here, behind those of the
    kernels, which devices then sum once for all layers. Mixed, each layer's would be a sum of its own."""
    return x if layout is None or layout.mesh.size == 1 else jax.lax.optimization_barrier(x)
