"""Advantages of methods without a critic that look at more than a group's rewards: at tokens, lengths, other answers.

    function(groups, batch) -> {"advantages": [N] or [N, T]}

as rollouts/credit.py has them. An episode without a reward has advantage 0, and no part in any mean or deviation.
"""

from collections.abc import Callable, Sequence

import numpy as np

from errors import InputError
from rollouts.episodes import Group
from rollouts.returns import gae, whiten
from rollouts.vine import vine

Columns = dict[str, np.ndarray]


def reinforce_plus_plus(groups: Sequence[Group], batch: Columns) -> Columns:
    """The sum of the rewards from token t on, the KL of each token with them, whitened over all tokens of the batch.
    REINFORCE++ (Hu et al. 2025, arXiv:2501.03262); the KL is there with --algorithm.kl-in reward."""
    mask = _mask(batch)
    returns = gae(batch["token_rewards"], np.zeros(mask.shape), mask, gamma=1.0, lam=1.0)
    return {"advantages": whiten(returns, mask)}


def reinforce_plus_plus_baseline(groups: Sequence[Group], batch: Columns) -> Columns:
    """R - mean of the group at every token, whitened over all tokens of the batch. REINFORCE++-baseline (as above);
    its KL is in the loss, as k2."""
    rewards, mask = _by_group(groups, batch), _mask(batch)
    number = np.sum(~np.isnan(rewards), axis=1, keepdims=True)
    centred = rewards - np.nansum(rewards, axis=1, keepdims=True) / np.maximum(number, 1)
    return {"advantages": whiten(np.broadcast_to(centred.reshape(-1, 1), mask.shape), mask)}


def opo(groups: Sequence[Group], batch: Columns) -> Columns:
    """R - sum_i l_i R_i / sum_i l_i over the group, l_i the tokens that were drawn: the baseline of least variance if
    the gradient's size grows with the length. OPO (Hao et al. 2025, arXiv:2505.23585)."""
    rewards = _by_group(groups, batch)
    lengths = np.where(np.isnan(rewards), 0, np.sum(batch["loss_mask"], axis=1).reshape(rewards.shape))
    baseline = np.nansum(lengths * rewards, axis=1, keepdims=True) / np.maximum(lengths.sum(1, keepdims=True), 1)
    return {"advantages": np.nan_to_num(rewards - baseline).ravel()}


def remax(groups: Sequence[Group], batch: Columns) -> Columns:
    """R - R of the likeliest answer to the same prompt. ReMax (Li et al. 2024, arXiv:2310.10505); a prompt whose
    likeliest answer got no reward has advantages of 0. A KL in the reward counts from each token on."""
    mask = _mask(batch)
    returns = gae(batch["token_rewards"], np.zeros(mask.shape), mask, gamma=1.0, lam=1.0)
    return {"advantages": np.nan_to_num(returns - batch["greedy_rewards"][:, None]) * (mask != 0)}


remax.needs = ("greedy_rewards",)


def _mask(batch: Columns) -> np.ndarray:
    """1 at tokens that were drawn for a reward."""
    return batch["loss_mask"] * ~np.isnan(batch["rewards"])[:, None]


def _by_group(groups: Sequence[Group], batch: Columns) -> np.ndarray:
    """Rewards [P, G]; a group of one has no others to be compared with."""
    rewards = batch["rewards"].reshape(len(groups), -1)
    if rewards.shape[1] < 2:
        raise InputError("a group of one completion has nothing to be compared with; set --group-size to 2 or more")
    return rewards


BASELINES: dict[str, Callable[[Sequence[Group], Columns], Columns]] = {
    "reinforce_plus_plus": reinforce_plus_plus, "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "opo": opo, "remax": remax, "vine": vine}
ALONE = ("reinforce_plus_plus", "remax", "vine")
"""of these, those that compare an answer with none of its group"""
