"""The NLL of right answers beside a policy's loss."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from objectives.base import Loss, by_token, declared, masked_sum

Objective = Callable[[Any, dict[str, ArrayLike]], Loss]


def plus_nll(scores: Any, batch: dict[str, ArrayLike], base: Objective, coefficient: float) -> Loss:
    """base + c sum_t -w logp_t, w the column nll_weights [B], 0 for rows that are not right; the unit is base's.

    The positive-example NLL of VAPO (Yue et al. 2025, arXiv:2504.05118, section 4.3; c 0.1 there). With w the units of
    the optimiser batch over the tokens of its right answers (rollouts.credit.nll_weights), the term is c times the mean
    NLL of these tokens, however the batch is split. Metric nll: that mean.
    """
    loss, mask = base(scores, batch), batch["loss_mask"]
    weights = by_token(batch["nll_weights"], mask)
    losses = jnp.where(mask * weights != 0, -scores.logps, 0.0)
    right = mask * (weights != 0)
    metrics = {"nll": (masked_sum(jax.lax.stop_gradient(losses), right), jnp.sum(right))}
    return loss._replace(total=loss.total + coefficient * masked_sum(losses, mask * weights),
                         metrics=loss.metrics | metrics)


def with_nll(base: Objective, coefficient: float) -> Objective:
    """`plus_nll` around an objective."""
    objective = functools.partial(plus_nll, base=base, coefficient=coefficient)
    objective.needs, objective.optional = (*declared(base), "nll_weights"), declared(base, "optional")
    return objective
