"""What the tokens of rollouts are worth: rewards by token, advantages and returns, on the host in float64.

[N, T] throughout, an episode a row; `mask` [N, T] is 1 where the policy drew the token. Only these are actions: what an
environment said between them takes no time, and no value is read there. values[t] is the value of what token t was
drawn after. The last token that the policy drew ends the episode, also one that a limit cut.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

Column = Float[np.ndarray, "N T"]


def token_rewards(rewards: Float[np.ndarray, "N"], mask: Column, kl: Column | float = 0.0,
                  beta: float = 0.0) -> Column:
    """-beta kl_t at every token that was drawn, and the episode's reward at the last of them. (InstructGPT, Ouyang et
    al. 2022, arXiv:2203.02155.) A reward of NaN is 0."""
    drawn = mask != 0
    by_token = np.where(drawn, -beta * np.asarray(kl, np.float64), 0.0)
    rows = np.flatnonzero(drawn.any(axis=1))
    by_token[rows, last_drawn(mask)[rows]] += np.nan_to_num(rewards)[rows]
    return by_token


def last_drawn(mask: Column) -> np.ndarray:
    """Index [N] of the last token that the policy drew; the last of all where it drew none."""
    return mask.shape[1] - 1 - np.argmax(mask[:, ::-1] != 0, axis=1)


def gae(rewards: Column, values: Column, mask: Column, gamma: float, lam: Any) -> Column:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t, over the tokens that were drawn;
    t + 1 is the next of them, and V is 0 after the last.

    Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16). `lam` is a number, or [N], one
    for each row. Returns are advantages + values: with lam 1 the discounted sum of rewards.
    """
    advantages = np.zeros(mask.shape, np.float64)
    after, value_after = np.zeros((2, len(mask)))
    for t in reversed(range(mask.shape[1])):
        drawn = mask[:, t] != 0
        delta = rewards[:, t] + gamma * value_after - values[:, t]
        after = np.where(drawn, delta + gamma * lam * after, after)
        value_after = np.where(drawn, values[:, t], value_after)
        advantages[:, t] = np.where(drawn, after, 0.0)
    return advantages


def adaptive_lam(mask: Column, alpha: float) -> Float[np.ndarray, "N"]:
    """1 - 1 / (alpha l), l the tokens that were drawn; 0 at the least. VAPO (Yue et al. 2025, arXiv:2504.05118,
    section 4.2), alpha 0.05 there: the weights of an episode's deltas sum to alpha l, whatever its length."""
    lengths = np.maximum(np.sum(mask != 0, axis=1), 1)
    return np.maximum(1 - 1 / (alpha * lengths), 0.0)


def whiten(values: Column, mask: Column) -> Column:
    """(A - mean) / sqrt(unbiased variance + 1e-8) over all tokens that were drawn in the whole batch of rollouts, on
    all devices and processes, which have it alike; 0 elsewhere. TRL's and verl's masked_whiten, which see a
    micro-batch or a device's rows."""
    drawn = values[mask != 0].astype(np.float64)
    if len(drawn) < 2:
        return np.zeros(mask.shape)
    drawn -= drawn[0]  # equal values are exactly 0 so, whatever their mean rounds to
    whitened = np.zeros(mask.shape)
    whitened[mask != 0] = (drawn - drawn.mean()) / np.sqrt(drawn.var(ddof=1) + 1e-8)
    return whitened


def explained_variance(values: Column, returns: Column, mask: Column) -> float:
    """1 - Var(R - V) / Var(R) over the tokens that were drawn: 1 where values foresee returns, 0 where they might as
    well be constant. NaN where returns do not vary."""
    drawn = mask != 0
    spread = np.var(returns[drawn], dtype=np.float64) if drawn.any() else 0.0
    return float(1 - np.var((returns - values)[drawn], dtype=np.float64) / spread) if spread > 0 else float("nan")
