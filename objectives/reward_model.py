"""Reward models: a scalar for each answer, learnt from which of two was preferred."""

from typing import Any

import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import ArrayLike

from objectives.base import Loss
from objectives.pairs import present_pairs, reward_metrics, split_pairs


def reward_model(scores: Any, batch: dict[str, ArrayLike], centering: float = 0.0) -> Loss:
    """-log S(r_w - r_l - m) + c (r_w + r_l)^2, S the logistic function and c `centering`; the unit is the pair.

    Bradley-Terry (1952), as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, eq. 1). r is scores.rewards [B], what
    the scalar head reads at the last token of each row's answer; rows are laid out as objectives.pairs says. m comes in
    the column margin [B], read at the chosen row (how much better it is: Llama 2, Touvron et al. 2023,
    arXiv:2307.09288, eq. 2); without one it is 0. The loss knows differences alone; a small c (0.01) keeps
    rewards around 0 (Eisenstein et al. 2023, arXiv:2312.09244). As in TRL 1.16, but for
    padding pairs, which here count for nothing.

    With r = beta D it is DPO's sigmoid. Metrics: the rewards under the field's names; ties are pairs of equal rewards.
    """
    present = present_pairs(batch["loss_mask"])
    chosen, rejected = (jnp.where(present != 0, each, 0.0) for each in split_pairs(scores.rewards))
    margin = split_pairs(batch["margin"])[0] if "margin" in batch else 0.0
    losses = -log_sigmoid(chosen - rejected - margin) + centering * (chosen + rejected) ** 2
    return Loss(jnp.sum(jnp.where(present != 0, losses, 0.0)), jnp.sum(present),
                reward_metrics(chosen, rejected, present))


reward_model.optional = ("margin",)
