"""Language modelling: negative log-likelihood of every token (pre-training)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import ArrayLike

from batch import follows
from objectives.base import Loss, masked_sum
from objectives.sft import sft


def next_token(scores: Any, batch: dict[str, ArrayLike], z_loss: float = 0.0) -> Loss:
    """sum_t -log p(y_t | y_<t) + z_loss log(Z_t)^2 over every token that has a predecessor in its segment.

    The unit is the token; the loss mask is not read: prompts and headers count as well. Z_t is the softmax's
    normaliser at token t; holding log Z near 0 keeps logits from drifting (PaLM, Chowdhery et al. 2022,
    arXiv:2204.02311, section 5, with z_loss 1e-4). The metric `z_loss` is what that term adds to the loss.
    """
    mask = follows(batch["segment_ids"]).astype(jnp.float32)
    loss = sft(scores, batch | {"loss_mask": mask})
    if z_loss == 0:
        return loss
    penalty = z_loss * masked_sum(scores.log_z**2, mask)
    return Loss(loss.total + penalty, loss.weight, loss.metrics | {"z_loss": (penalty, loss.weight)})
