"""What is counted of rollouts, under the names that the field knows, and a warning where rewards teach nothing."""

import sys
from collections.abc import Sequence

import numpy as np

from rollouts.episodes import Group, rewards_of


def rollout_metrics(groups: Sequence[Group], seconds: float) -> dict[str, float]:
    """Of rollouts that took so many seconds; lengths in tokens after the prompt, the end token counted. What nothing
    has is left out."""
    episodes = [episode for group in groups for episode in group.episodes]
    lengths = np.asarray([len(episode.completion) for episode in episodes])
    reasons = np.asarray([episode.finish_reason for episode in episodes])
    ended = reasons == "stop"
    metrics = reward_metrics(groups) | {
        "completions/mean_length": np.mean(lengths), "completions/min_length": np.min(lengths),
        "completions/max_length": np.max(lengths), "completions/clipped_ratio": np.mean(reasons == "length"),
        "rollout_tokens_per_second": sum(sum(episode.sampled) for episode in episodes) / seconds}
    if ended.any():
        metrics["completions/mean_terminated_length"] = np.mean(lengths[ended])
    return {name: float(value) for name, value in metrics.items()}


def reward_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """reward, reward_std (of a group, on average), frac_reward_zero_std; each reward's mean, std and failures."""
    rewards = rewards_of(groups)
    metrics = {"frac_reward_zero_std": np.mean([not group.has_spread for group in groups])}
    scored = ~np.isnan(rewards)
    if scored.any():
        metrics["reward"] = np.nanmean(rewards)
        full = rewards[np.sum(scored, axis=1) > 1]
        metrics |= {"reward_std": np.mean(np.nanstd(full, axis=1, ddof=1))} if len(full) else {}
    episodes = [episode for group in groups for episode in group.episodes]
    for name in dict.fromkeys(name for episode in episodes for name in episode.values):
        given = [episode.values[name] for episode in episodes if episode.values.get(name) is not None]
        metrics |= {f"rewards/{name}/mean": np.mean(given), f"rewards/{name}/std": np.std(given)} if given else {}
    failed = [failure.reward for group in groups for failure in group.failures]
    metrics |= {f"rewards/{name}/failures": failed.count(name) for name in dict.fromkeys(failed)}
    return {name: float(value) for name, value in metrics.items()}


class SpreadMonitor:
    """Warns where rewards teach nothing for long: no group of many steps in a row has rewards that differ."""

    def __init__(self, patience: int = 10):
        self._patience, self._flat = patience, 0

    def update(self, groups: Sequence[Group], step: int) -> None:
        """Takes a step's rollouts into account."""
        self._flat = 0 if any(group.has_spread for group in groups) else self._flat + 1
        if self._flat and self._flat % self._patience == 0:
            print(f"warning: step {step}: for {self._flat} steps all completions of every prompt got equal rewards, so "
                  f"nothing is learnt; try easier or harder prompts, a higher --temperature, a larger --group-size, "
                  f"--dynamic-sampling-tries above 1, or a reward that tells answers apart", file=sys.stderr)


def time_shares(seconds: dict[str, float]) -> dict[str, float]:
    """What part of the step went where, time_share/NAME."""
    total = sum(seconds.values())
    return {f"time_share/{name}": each / total for name, each in seconds.items()}
