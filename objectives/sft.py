"""Supervised fine-tuning: negative log-likelihood of the target tokens (the assistant's)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import ArrayLike

from objectives.base import Loss, masked_sum


def sft(scores: Any, batch: dict[str, ArrayLike]) -> Loss:
    """-sum_t m_t log p(y_t | y_<t), m the loss_mask; the unit is the target token.

    The sum runs over all target tokens of the optimiser batch and is divided by their number there, so a token counts
    the same in a long and in a short row, in a full and in a padded micro-batch (not the mean of means that gradient
    accumulation often makes of it).
    """
    mask = batch["loss_mask"]
    weight = jnp.sum(mask)
    return Loss(-masked_sum(scores.logps, mask), weight, {"entropy": (masked_sum(scores.entropy, mask), weight)})
