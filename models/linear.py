"""The matmul of a layer's activations with its kernel, which lies in parts: gathered for each use, its gradient reduced
to the parts."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout as Order
from jax.experimental.layout import with_layout_constraint
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from sharding.layout import Layout, constrain, names_of


def matmul(x: Float[Array, "B T *inner"], kernel: Float[Array, "in out"], axes: tuple[str, str],
           layout: Layout | None, features: tuple[int, ...] | None = None) -> Float[Array, "B T *outer"]:
    """x @ kernel, in x's dtype, `in` being all dimensions of x behind the length, and `out`, split up, `features`.

    Heads are split up here, and not by a reshape of what comes out, of which TPUs, whose memory holds tiles of the last
    two dimensions, make a copy. Over mesh axes that split rows, too, the kernel is gathered, in x's dtype, once here
    and once in the backward pass: what is kept in between are the parts. Its gradient is summed over devices in the
    layout's reduce_dtype, and each gets its part of it.
    """
    features = features or kernel.shape[1:]
    return _matmul(axes, features, None if layout is None or layout.mesh.size == 1 else layout, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _matmul(axes: tuple[str, str], features: tuple[int, ...], layout: Layout | None, x: Array, kernel: Array) -> Array:
    out = jnp.tensordot(x, _whole(axes, features, layout, x, kernel), axes=x.ndim - 2)
    return heads_first(out) if out.ndim == 4 else out


def _keep(axes: tuple[str, str], features: tuple[int, ...], layout: Layout | None, x: Array,
          kernel: Array) -> tuple[Array, Any]:
    return _matmul(axes, features, layout, x, kernel), (x, kernel)


def _give_back(axes: tuple[str, str], features: tuple[int, ...], layout: Layout | None, saved: Any,
               cotangent: Array) -> tuple[Array, Array]:
    x, kernel = saved
    outer = tuple(range(-len(features), 0))
    to_x = jnp.tensordot(cotangent, _whole(axes, features, layout, x, kernel), axes=(outer, outer))
    dtype = None if layout is None else jnp.dtype(layout.reduce_dtype)
    to_kernel = _across_rows(x, cotangent, dtype).reshape(kernel.shape)
    if layout is not None:
        to_kernel = jax.lax.with_sharding_constraint(to_kernel, layout.sharding(*axes))
    return to_x, to_kernel.astype(kernel.dtype)


_matmul.defvjp(_keep, _give_back)


def _across_rows(x: Float[Array, "B T *inner"], y: Float[Array, "B T *outer"], dtype: Any) -> Array:
    """x^T y, [*inner, *outer]. XLA's CPU backend transposes the whole first factor of a product: where y is much
    narrower, as of an adapter's first matrix, that is y."""
    def product(x: Array, y: Array) -> Array:
        return jnp.tensordot(x, y, axes=((0, 1), (0, 1)), preferred_element_type=dtype)

    if math.prod(x.shape[2:]) < 8 * math.prod(y.shape[2:]):
        return product(x, y)
    turned = jax.lax.optimization_barrier(product(y, x))  # or XLA would turn the factors, and not what comes out
    return jnp.moveaxis(turned, tuple(range(y.ndim - 2)), tuple(range(2 - y.ndim, 0)))


def _whole(axes: tuple[str, str], features: tuple[int, ...], layout: Layout | None, x: Array, kernel: Array) -> Array:
    """[*inner, *features], in x's dtype, whole over the mesh axes that split rows."""
    return _gathered(axes, layout, kernel.astype(x.dtype)).reshape(*x.shape[2:], *features)


def _gathered(axes: tuple[str, str], layout: Layout | None, kernel: Array) -> Array:
    if layout is None:
        return kernel
    rows = [name for entry in layout.entries(("batch",)) for name in names_of(entry)]
    entries = [tuple(name for name in names_of(entry) if name not in rows) or None for entry in layout.entries(axes)]
    return jax.lax.with_sharding_constraint(kernel, NamedSharding(layout.mesh, PartitionSpec(*entries)))


def heads_first(x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    """x itself, which lies in a TPU's memory as its attention kernel reads it, head by head, from the matmul on that
    makes it; the compiler, left to itself, may choose another order there and copy x."""
    order = Order(major_to_minor=(0, 2, 1, 3))
    return jax.lax.platform_dependent(x, tpu=lambda x: with_layout_constraint(x, order), default=lambda x: x)


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
