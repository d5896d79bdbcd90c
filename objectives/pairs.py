"""What objectives on pairs share. Two adjacent rows are a pair: row 2i is the chosen answer, row 2i + 1 the rejected.

A row holds one prompt and one answer, and its loss_mask marks the answer's tokens, the end token with them. A pair that
fills up a batch has no targets and counts for nothing; nor does one of which only one row has any.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped

from objectives.base import masked_sum

Metrics = dict[str, tuple[Array, Array]]


def split_pairs(rows: Shaped[ArrayLike, "B *rest"]) -> tuple[Array, Array]:
    """[B, ...] -> those of the chosen answers and those of the rejected ones, both [B/2, ...]."""
    chex.assert_is_divisible(rows.shape[0], 2)  # a pair must never lie in two micro-batches
    rows = jnp.asarray(rows)
    return rows[0::2], rows[1::2]


def log_ratios(logps: Float[ArrayLike, "B T"], ref_logps: Float[ArrayLike, "B T"]) -> Float[Array, "B T"]:
    """log pi - log ref by token; what is within rounding of 0 is 0, with the gradient that it has.

    Policy and reference are scored by two programs, whose sums over the vocabulary may round differently in the last
    bits. So a policy that still is its reference has ratios of exactly 0.
    """
    ratios = logps - ref_logps
    rounding = 4 * jnp.finfo(ratios.dtype).eps * jnp.maximum(1.0, jnp.abs(ref_logps))
    return ratios - jax.lax.stop_gradient(jnp.where(jnp.abs(ratios) <= rounding, ratios, 0.0))


def answer_sums(values: Float[ArrayLike, "B T"], mask: Float[ArrayLike, "B T"]) -> Float[Array, "B"]:
    """Sum over each row's answer; what is masked adds exactly 0, even if not finite."""
    chex.assert_equal_shape([values, mask])
    return jnp.sum(jnp.where(mask != 0, values * mask, 0.0), axis=-1)


def answer_means(values: Float[ArrayLike, "B T"], mask: Float[ArrayLike, "B T"]) -> Float[Array, "B"]:
    """Mean over each row's answer; 0 where there is none."""
    return answer_sums(values, mask) / answer_lengths(mask)


def answer_lengths(mask: Float[ArrayLike, "B T"]) -> Float[Array, "B"]:
    """Target tokens of each row; 1 where there are none, so that it divides."""
    lengths = jnp.sum(mask, axis=-1)
    return jnp.where(lengths > 0, lengths, 1.0)


def present_pairs(mask: Float[ArrayLike, "B T"]) -> Float[Array, "P"]:
    """1 for each pair that counts, 0 for one that fills up the batch."""
    chosen, rejected = split_pairs(jnp.any(mask != 0, axis=-1))
    return (chosen & rejected).astype(mask.dtype)


def sum_and_weight(values: Shaped[Array, "P"], present: Float[Array, "P"]) -> tuple[Array, Array]:
    """A metric: the sum over what is present, and its weight; without a gradient."""
    values = jax.lax.stop_gradient(values).astype(present.dtype)
    return jnp.sum(jnp.where(present != 0, values * present, 0.0)), jnp.sum(present)


def reward_metrics(chosen: Float[Array, "P"], rejected: Float[Array, "P"], present: Float[Array, "P"]) -> Metrics:
    """rewards/chosen, /rejected, /margins; /accuracies, the share of margins above 0; /ties, the share of exact zeros.

    A policy that still is its reference has margins of exactly 0: all ties, no accuracy.
    """
    margins = chosen - rejected
    named = {"chosen": chosen, "rejected": rejected, "margins": margins}
    named |= {"accuracies": margins > 0, "ties": margins == 0}
    return {f"rewards/{name}": sum_and_weight(values, present) for name, values in named.items()}


def policy_metrics(scores: Any, mask: Float[ArrayLike, "B T"], chosen: Float[Array, "P"], rejected: Float[Array, "P"],
                   present: Float[Array, "P"]) -> Metrics:
    """logps/chosen and logps/rejected as given, and the mean entropy of the answers' tokens, in nats."""
    return {"logps/chosen": sum_and_weight(chosen, present), "logps/rejected": sum_and_weight(rejected, present),
            "entropy": (masked_sum(scores.entropy, mask), jnp.sum(mask))}
