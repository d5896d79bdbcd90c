"""SimPO and CPO: preference without a reference."""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from objectives.base import Loss
from objectives.dpo import conservative
from objectives.pairs import (
    answer_lengths,
    answer_sums,
    policy_metrics,
    present_pairs,
    reward_metrics,
    split_pairs,
    sum_and_weight,
)


def simpo(scores: Any, batch: dict[str, ArrayLike], beta: float = 2.0, gamma: float = 1.0,
          label_smoothing: float = 0.0, nll_weight: float = 0.0) -> Loss:
    """conservative(beta (l_w - l_l) - gamma) - nll_weight l_w; the unit is the pair. conservative(x) is -log S(x) at
    `label_smoothing` 0.

    SimPO (Meng et al. 2024, arXiv:2405.14734, eq. 6). l is the mean log-probability of an answer's tokens and S the
    logistic function; rows are laid out as objectives.pairs says. beta and gamma are in the paper's ranges (from 2,
    and 0.3 to 1.6). At gamma 0 it is dpo's sigmoid_norm with a reference of probability 1.

    Deviations of TRL 1.16 (CPOTrainer, loss_type simpo): its defaults beta 0.1 and gamma 0.5 are far from the paper's,
    and its cpo_alpha 1 adds a term that SimPO has not; that is `nll_weight` 1 here, per pair as in `cpo`.
    """
    means, present = _means(scores, batch)
    return _finish(scores, batch, means, means, beta, gamma, label_smoothing, nll_weight * -means[0], present)


def cpo(scores: Any, batch: dict[str, ArrayLike], beta: float = 0.1, label_smoothing: float = 0.0,
        nll_weight: float = 1.0, nll: Literal["mean", "sum"] = "mean") -> Loss:
    """conservative(beta (L_w - L_l)) + nll_weight NLL, L the summed log-probability of an answer; the unit is the pair.

    CPO (Xu et al. 2024, arXiv:2401.08417, eq. 3 to 5). `nll` "sum" is the paper's NLL = -L_w. "mean" divides it by the
    answer's tokens; TRL 1.16 has a mean over the tokens of a micro-batch, which changes with gradient accumulation and
    equals ours where all chosen answers are of one length, or a micro-batch is one pair.
    With nll_weight 0 it is dpo's sigmoid with a reference of probability 1.
    """
    means, present = _means(scores, batch)
    sums = split_pairs(answer_sums(scores.logps, batch["loss_mask"]))
    penalty = nll_weight * -{"mean": means, "sum": sums}[nll][0]
    return _finish(scores, batch, sums, means, beta, 0.0, label_smoothing, penalty, present)


def _means(scores: Any, batch: dict[str, ArrayLike]) -> tuple[tuple[Array, Array], Float[Array, "P"]]:
    mask = batch["loss_mask"]
    return split_pairs(answer_sums(scores.logps, mask) / answer_lengths(mask)), present_pairs(mask)


def _finish(scores: Any, batch: dict[str, ArrayLike], logps: tuple[Array, Array], means: tuple[Array, Array],
            beta: float, gamma: float, label_smoothing: float, penalty: Float[Array, "P"],
            present: Float[Array, "P"]) -> Loss:
    """Both losses; metrics are rewards beta `logps` and nll_loss, a chosen answer's NLL by token, among others."""
    chosen, rejected = logps
    losses = conservative(beta * (chosen - rejected) - gamma, label_smoothing) + penalty
    metrics = {"nll_loss": sum_and_weight(-means[0], present)}
    metrics |= reward_metrics(beta * chosen, beta * rejected, present)
    metrics |= policy_metrics(scores, batch["loss_mask"], chosen, rejected, present)
    return Loss(jnp.sum(jnp.where(present != 0, losses, 0.0)), jnp.sum(present), metrics)
