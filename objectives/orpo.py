"""ORPO: supervised fine-tuning and preference in one, without a reference."""

from typing import Any

import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, ArrayLike, Float

from objectives.base import Loss
from objectives.pairs import answer_means, policy_metrics, present_pairs, reward_metrics, split_pairs, sum_and_weight


def orpo(scores: Any, batch: dict[str, ArrayLike], beta: float = 0.1) -> Loss:
    """-l_w - beta log S(log odds_w - log odds_l), log odds = l - log(1 - exp l); the unit is the pair.

    ORPO (Hong et al. 2024, arXiv:2403.07691, eq. 3 to 7), beta its lambda. l is the mean log-probability of an answer's
    tokens and S the logistic function; rows are laid out as objectives.pairs says. At beta 0 it is dpo's sft.

    Deviations of TRL 1.16: its first term runs over the prompt as well, where the paper has p(y|x), and is a mean over
    the tokens of a micro-batch, so that it changes with gradient accumulation; here every pair counts the same, as in
    the paper's expectation. The two agree for prompts of one token where all chosen answers are of one length.

    Metrics: rewards beta l and logps l (means, as in TRL), nll_loss, log_odds_ratio (the mean log S(...)),
    log_odds_chosen (the mean of its argument), entropy.
    """
    mask = batch["loss_mask"]
    present = present_pairs(mask)
    l_w, l_r = (jnp.where(present != 0, each, -1.0) for each in split_pairs(answer_means(scores.logps, mask)))
    difference = log_odds(l_w) - log_odds(l_r)
    ratio = log_sigmoid(difference)
    metrics = {name: sum_and_weight(values, present) for name, values in
               {"nll_loss": -l_w, "log_odds_ratio": ratio, "log_odds_chosen": difference}.items()}
    metrics |= reward_metrics(beta * l_w, beta * l_r, present) | policy_metrics(scores, mask, l_w, l_r, present)
    return Loss(jnp.sum(jnp.where(present != 0, -l_w - beta * ratio, 0.0)), jnp.sum(present), metrics)


def log_odds(logps: Float[Array, "P"]) -> Float[Array, "P"]:
    """log(p / (1-p)), p = exp(logps), without loss of digits at either end; p is kept a rounding error below 1, where
    the odds are infinite."""
    logps = jnp.minimum(logps, -jnp.finfo(logps.dtype).eps)
    return logps - jnp.log(-jnp.expm1(logps))
