"""KTO: answers that are good or bad by themselves, without pairs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, ArrayLike, Float

from objectives.base import Loss, masked_sum
from objectives.pairs import answer_sums, log_ratios, sum_and_weight


def kto(scores: Any, batch: dict[str, ArrayLike], beta: float = 0.1, desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0) -> Loss:
    """w_d (1 - S(beta (D - z))) for a desirable answer, w_u (1 - S(beta (z - D))) for an undesirable one; the unit is
    the row.

    KTO (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8, without the constant). D = log pi(y|x) - log ref(y|x)
    over the answer that loss_mask marks, S the logistic function. A row without targets counts for nothing.
    Columns: ref_logps [B, T]; label [B], true (non-zero) for a desirable answer; kto_z [B], the reference point z, the
    same for all rows of the optimiser batch, from a first pass over it (`mismatched`, `reference_point`): data here,
    so nothing couples the rows and no gradient reaches z, as in the paper.

    Exact reductions: z = 0 is APO-zero on single answers (TRL's apo_zero_unpaired). Rows in pairs with z = 0 sum to
    apo_zero on those pairs.
    Deviation of TRL 1.16: z is a mean over each micro-batch, averaged over devices, and so changes with gradient
    accumulation.

    Metrics: rewards/chosen and logps/chosen over the desirable rows, /rejected over the undesirable; kl, the mean z;
    entropy. The margin is the difference of two means with weights of their own, so whoever reads the two takes it.
    """
    mask = batch["loss_mask"]
    present = jnp.any(mask != 0, axis=-1).astype(mask.dtype)
    good = jnp.asarray(batch["label"]) != 0
    D = answer_sums(log_ratios(scores.logps, batch["ref_logps"]), mask)
    z = jax.lax.stop_gradient(jnp.where(present != 0, batch["kto_z"], 0.0))
    sign, weight = jnp.where(good, 1.0, -1.0), jnp.where(good, desirable_weight, undesirable_weight)
    losses = weight * (1 - sigmoid(sign * beta * (D - z)))
    sides = {"chosen": present * good, "rejected": present * ~good}
    metrics = {f"rewards/{name}": sum_and_weight(beta * D, side) for name, side in sides.items()}
    logps = answer_sums(scores.logps, mask)
    metrics |= {f"logps/{name}": sum_and_weight(logps, side) for name, side in sides.items()}
    metrics |= {"kl": sum_and_weight(z, present), "entropy": (masked_sum(scores.entropy, mask), jnp.sum(mask))}
    return Loss(jnp.sum(jnp.where(present != 0, losses, 0.0)), jnp.sum(present), metrics)


kto.needs = ("ref_logps", "label", "kto_z")


def mismatched(scores: Any, batch: dict[str, ArrayLike]) -> tuple[Array, Array]:
    """(sum of D, number) of rows whose prompt has another row's answer; sums, so that micro-batches add up.

    `batch` has loss_mask and ref_logps as `kto` takes them, of the mismatched rows.
    """
    mask = batch["loss_mask"]
    D = answer_sums(log_ratios(scores.logps, batch["ref_logps"]), mask)
    return sum_and_weight(D, jnp.any(mask != 0, axis=-1).astype(mask.dtype))


def reference_point(total: Float[ArrayLike, ""], weight: Float[ArrayLike, ""]) -> Float[Array, ""]:
    """z = max(0, total / weight): an estimate of the KL from reference to policy, which is never negative; 0 without
    rows. `total` and `weight` are sums of `mismatched` over the whole optimiser batch."""
    return jax.lax.stop_gradient(jnp.maximum(total / jnp.where(weight > 0, weight, 1.0), 0.0))
