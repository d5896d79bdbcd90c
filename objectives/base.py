"""What every objective returns."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


class Loss(NamedTuple):
    """Sums, never means: the train step alone divides, once, after all micro-batches and devices.

    So the same rows give the same loss and gradient however they are split, laid over devices, packed or padded.
    """

    total: Float[Array, ""]
    """sum of the per-unit losses"""
    weight: Float[Array, ""]
    """number of units: tokens, sequences or pairs, as the objective's docstring says"""
    metrics: dict[str, tuple[Array, Array]]
    """name -> (sum, weight)"""
    extremes: dict[str, Array] = {}
    """name -> value: the smallest where the name ends in /min, else the largest; no means, so they have no weight"""


def combine(one: Loss, other: Loss) -> Loss:
    """Of the rows of both: sums add up, of extremes the more extreme is left."""
    extremes = {name: extreme(name)(value, other.extremes[name]) for name, value in one.extremes.items()}
    return Loss(*jax.tree.map(jnp.add, one[:3], other[:3]), extremes)


def combined(losses: Loss) -> Loss:
    """`combine` of the losses [C] that stand along the first axis of every value."""
    extremes = {name: functools.reduce(extreme(name), values) for name, values in losses.extremes.items()}
    return Loss(*jax.tree.map(lambda values: jnp.sum(values, axis=0), losses[:3]), extremes)


def zero_loss(shapes: Loss) -> Loss:
    """The Loss of no rows, in float32, to which `combine` adds others; `shapes` are those of the objective's Loss."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes[:3])
    return Loss(*zeros, {name: jnp.float32(jnp.inf if name.endswith("/min") else -jnp.inf) for name in shapes.extremes})


def extreme(name: str) -> Callable[[Array, Array], Array]:
    """The function that combines two extremes of this name."""
    return jnp.minimum if name.endswith("/min") else jnp.maximum


def declared(objective: Callable[..., Any], name: str = "needs") -> tuple[Any, ...]:
    """The columns that an objective says it reads beyond the usual ones, by an attribute of its own: `needs`, or
    `optional`, which it reads where there are any. Arguments that were bound change nothing."""
    while isinstance(objective, functools.partial) and not hasattr(objective, name):
        objective = objective.func
    names = getattr(objective, name, ())
    return (names,) if isinstance(names, str) else tuple(names)


def by_token(column: Float[ArrayLike, "B *T"], mask: Float[ArrayLike, "B T"]) -> Float[Array, "B T"]:
    """A column of numbers at every token: [B, T] as it is, which it is under packing, too, and [B], one a row, spread
    over the row's tokens."""
    column = jnp.asarray(column)
    return jnp.broadcast_to(column[:, None], mask.shape) if column.ndim == 1 else column


def masked_sum(values: Float[ArrayLike, "B T"], mask: Float[ArrayLike, "B T"]) -> Float[Array, ""]:
    """Sum of values where mask is non-zero, weighted by it; what is masked adds exactly 0, even if not finite."""
    chex.assert_equal_shape([values, mask])  # [B, T] beside [B, 1] would broadcast in silence
    return jnp.sum(jnp.where(mask != 0, values * mask, 0.0))
