"""What every objective returns."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int


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


def follows(segment_ids: Int[ArrayLike, "B T"]) -> Bool[Array, "B T"]:
    """True where token t has a predecessor in its own segment: only there is a token predicted."""
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    return (segment_ids == before) & (segment_ids != 0)


def masked_sum(values: Float[ArrayLike, "B T"], mask: Float[ArrayLike, "B T"]) -> Float[Array, ""]:
    """Sum of values where mask is non-zero, weighted by it; what is masked adds exactly 0, even if not finite."""
    chex.assert_equal_shape([values, mask])  # [B, T] beside [B, 1] would broadcast in silence
    return jnp.sum(jnp.where(mask != 0, values * mask, 0.0))
