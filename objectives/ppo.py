"""PPO (Schulman et al. 2017, arXiv:1707.06347): a clipped policy with advantages by token, and a clipped value.

Advantages, returns and the values before the update are data (rollouts/returns.py). The policy's loss is that of
objectives/grpo.py, with all of its settings; policy and critic are updated apart, each with an optimiser of its own, so
no coefficient weighs one against the other.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from objectives.base import Loss, declared, masked_sum
from objectives.grpo import KL, configure
from objectives.pairs import log_ratios


def policy_loss(scores: Any, batch: dict[str, ArrayLike], base: Callable[[Any, dict[str, ArrayLike]], Loss]) -> Loss:
    """`base`, which is objectives.grpo's, with a metric: approx_kl, the mean over tokens of k3 = (r - 1) - log r, r the
    ratio to the policy that drew the batch: how far updates have moved it. The unit is base's."""
    loss, mask = base(scores, batch), batch["loss_mask"]
    old, new = (jnp.where(mask != 0, each, 0.0) for each in (batch["old_logps"], scores.logps))
    moved = KL["k3"](log_ratios(old, jax.lax.stop_gradient(new)))
    return loss._replace(metrics=loss.metrics | {"approx_kl": (masked_sum(moved, mask), jnp.sum(mask))})


def configure_policy(**settings: Any) -> Callable[[Any, dict[str, ArrayLike]], Loss]:
    """`policy_loss` with these settings of objectives.grpo.Settings, checked."""
    base = configure(**settings)
    objective = functools.partial(policy_loss, base=base)
    objective.needs = (*declared(base), "old_logps")
    objective.optional = declared(base, "optional")
    return objective


def value_loss(scores: Any, batch: dict[str, ArrayLike], epsilon: float = 0.2) -> Loss:
    """0.5 max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2) over target tokens; the unit is the token.

    V is scores.values [B, T]; R and V_old are the columns returns and values [B, T]: what V should have been, and what
    it was before the first update of the batch of rollouts. Clipped as in Schulman's baselines, TRL and verl: a value
    that has moved further than e, epsilon, has no gradient unless it moved away from R. The mean is over the tokens of
    the whole optimiser batch; TRL's is over those of the micro-batch.

    Metrics: clip_ratio, the share of tokens where the clipped term is the larger one; values, returns: means;
    error, the mean of (V - R)^2.
    """
    mask = batch["loss_mask"]
    values, old, returns = (jnp.where(mask != 0, each, 0.0)
                            for each in (scores.values, batch["values"], batch["returns"]))
    plain = (values - returns) ** 2
    clipped = (jnp.clip(values, old - epsilon, old + epsilon) - returns) ** 2  # exactly `plain` within the bounds
    means = {"clip_ratio": (clipped > plain).astype(mask.dtype), "values": values, "returns": returns, "error": plain}
    metrics = {name: (masked_sum(jax.lax.stop_gradient(each), mask), jnp.sum(mask)) for name, each in means.items()}
    return Loss(masked_sum(0.5 * jnp.maximum(plain, clipped), mask), jnp.sum(mask), metrics)


value_loss.needs = ("values", "returns")
