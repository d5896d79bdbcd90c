"""Language modelling: negative log-likelihood of every token (pre-training)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import ArrayLike

from objectives.base import Loss, follows
from objectives.sft import sft


def next_token(scores: Any, batch: dict[str, ArrayLike]) -> Loss:
    """-sum_t log p(y_t | y_<t) over every token that has a predecessor in its segment; the unit is the token.

    The loss mask is not asked: prompts and headers count as well.
    """
    return sft(scores, batch | {"loss_mask": follows(batch["segment_ids"]).astype(jnp.float32)})
