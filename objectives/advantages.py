"""From rewards to advantages, between rollout and update: P prompts with G completions each.

A reward of NaN says that a completion got none (not that it was bad): it is left out of every mean and deviation, and
its advantage is 0. So is that of the only one of a group that got a reward: there is nothing to compare it with.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from objectives.grpo import KL
from objectives.pairs import answer_sums, log_ratios

SMALLEST_STD = 1e-4
"""added to a deviation that divides, TRL's"""


def group(rewards: Float[ArrayLike, "P G"]) -> Float[Array, "P G"]:
    """(R - mean of the group) / (its unbiased standard deviation + 1e-4). GRPO (Shao et al. 2024, arXiv:2402.03300,
    section 4.1.2). TRL's scale_rewards "group"."""
    centred = mean(rewards)
    return centred / (_std(centred, _scored(rewards), axis=-1) + SMALLEST_STD)


def mean(rewards: Float[ArrayLike, "P G"]) -> Float[Array, "P G"]:
    """R - mean of the group. Dr. GRPO (Liu et al. 2025, arXiv:2503.20783): dividing by the deviation weighs up prompts
    that are too easy or too hard. TRL's scale_rewards "none"."""
    _check(rewards)
    return _centred(jnp.asarray(rewards), _scored(rewards), axis=-1)


def batch(rewards: Float[ArrayLike, "P G"]) -> Float[Array, "P G"]:
    """(R - mean of the group) / (unbiased standard deviation of all rewards + 1e-4); rewards are those of the whole
    optimiser batch. "Lite PPO" (Liu et al. 2025, arXiv:2508.08221). TRL's scale_rewards "batch"."""
    scored = _scored(rewards)
    everywhere = _std(_centred(jnp.asarray(rewards), scored, axis=None), scored, axis=None)
    return mean(rewards) / (everywhere + SMALLEST_STD)


def leave_one_out(rewards: Float[ArrayLike, "P G"]) -> Float[Array, "P G"]:
    """R_i - mean of the others of the group, which is n/(n-1) times `mean` for n rewards. RLOO (Ahmadian et al. 2024,
    arXiv:2402.14740, section 2.2)."""
    number = jnp.sum(_scored(rewards), axis=-1, keepdims=True)
    return mean(rewards) * number / jnp.maximum(number - 1, 1)


ADVANTAGES: dict[str, Callable[[ArrayLike], Array]] = {
    "group": group, "mean": mean, "batch": batch, "leave_one_out": leave_one_out}
"""rewards [P, G] -> advantages [P, G]. All raise ValueError for groups of one, whose advantages would be 0."""


def penalised(rewards: Float[ArrayLike, "N"], logps: Float[ArrayLike, "N T"], ref_logps: Float[ArrayLike, "N T"],
              mask: Float[ArrayLike, "N T"], beta: float, kl: str = "k1") -> Float[Array, "N"]:
    """R - beta sum_t k(logp_t - ref_t): the KL to the reference in the reward, before advantages are taken.

    k of objectives.grpo.KL. With k1 the sum is log pi(y|x)/ref(y|x): the mean reward falls by beta times the KL of
    whole completions, and the policy gradient by its gradient. With k3 only the mean does: a reward is a constant, so
    how k3 itself changes with the policy, which is 0 in expectation for k1, is lost. With k2 neither. RLOO has its KL
    here, as k1. A reward of NaN stays NaN.
    """
    if kl not in KL:
        raise ValueError(f"no kl is called {kl}; there are {', '.join(KL)}")
    return rewards - beta * answer_sums(KL[kl](log_ratios(logps, ref_logps)), mask)


def _check(rewards: Float[ArrayLike, "P G"]) -> None:
    if rewards.shape[-1] < 2:
        raise ValueError("a group of one completion has nothing to be compared with; set group_size to 2 or more")


def _scored(rewards: Float[ArrayLike, "P G"]) -> Bool[Array, "P G"]:
    return ~jnp.isnan(rewards)


def _centred(rewards: Float[Array, "P G"], scored: Bool[Array, "P G"], axis: int | None) -> Float[Array, "P G"]:
    """R - mean, 0 where there is no reward."""
    number = jnp.sum(scored, axis=axis, keepdims=True)
    average = jnp.sum(jnp.where(scored, rewards, 0.0), axis=axis, keepdims=True) / jnp.maximum(number, 1)
    return jnp.where(scored, rewards - average, 0.0)


def _std(centred: Float[Array, "P G"], scored: Bool[Array, "P G"], axis: int | None) -> Float[Array, "#P 1"]:
    """Unbiased; 0 of fewer than two rewards."""
    degrees = jnp.maximum(jnp.sum(scored, axis=axis, keepdims=True) - 1, 1)
    return jnp.sqrt(jnp.sum(centred**2, axis=axis, keepdims=True) / degrees)
