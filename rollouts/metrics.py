"""What is counted of rollouts, under the names that the field knows, and a warning where rewards teach nothing."""

import sys
from collections.abc import Mapping, Sequence

import numpy as np

from rollouts.drawing import Draw
from rollouts.episodes import Group, rewards_of


def step_metrics(draw: Draw, seconds: Mapping[str, float], num_dropped: int) -> dict[str, float]:
    """Of a step, whose parts took so many seconds; `num_dropped` prompts of the data were left out. Tokens and failures
    are of all that was drawn, also of what answers are only compared with."""
    drawn = [*draw.groups, *draw.compared]
    tokens = sum(sum(episode.sampled) - group.prompt.drawn for group in drawn for episode in group.episodes)
    return rollout_metrics(draw.groups, draw.seconds["rollout"]) | failure_metrics(drawn) | time_shares(seconds) | {
        "rollout_tokens_per_second": tokens / draw.seconds["rollout"], "count/sampled_tokens": tokens,
        "rows_dropped": num_dropped}


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
    """reward, reward_std (of a group, on average), frac_reward_zero_std, which groups of one have not; each reward's
    mean, std and failures."""
    rewards = rewards_of(groups)
    flat = np.mean([not group.has_spread for group in groups])
    metrics = {"frac_reward_zero_std": flat} if rewards.shape[1] > 1 else {}
    scored = ~np.isnan(rewards)
    if scored.any():
        metrics["reward"] = np.nanmean(rewards)
        full = rewards[np.sum(scored, axis=1) > 1]
        metrics |= {"reward_std": np.mean(np.nanstd(full, axis=1, ddof=1))} if len(full) else {}
    episodes = [episode for group in groups for episode in group.episodes]
    for name in dict.fromkeys(name for episode in episodes for name in episode.values):
        given = [episode.values[name] for episode in episodes if episode.values.get(name) is not None]
        metrics |= {f"rewards/{name}/mean": np.mean(given), f"rewards/{name}/std": np.std(given)} if given else {}
    return {name: float(value) for name, value in (metrics | failure_metrics(groups)).items()}


def failure_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """rewards/NAME/failures of each that has failed."""
    failed = [failure.reward for group in groups for failure in group.failures]
    return {f"rewards/{name}/failures": float(failed.count(name)) for name in dict.fromkeys(failed)}


class SpreadMonitor:
    """Warns where rewards teach nothing for long: in many steps in a row no group has rewards that differ, or, where
    answers are not compared with their group's, no two completions of all these steps."""

    def __init__(self, patience: int = 10, by_group: bool = True):
        self._patience, self._by_group, self._flat = patience, by_group, 0
        self._before: set[float] = set()  # the reward of the steps before, where it was one

    def update(self, groups: Sequence[Group], step: int) -> None:
        """Takes a step's rollouts into account."""
        self._flat = 0 if self._has_spread(groups) else self._flat + 1
        if self._flat and self._flat % self._patience == 0:
            which, more = ("every prompt", "a larger --group-size, --dynamic-sampling-tries above 1, "
                           ) if self._by_group else ("all prompts", "a larger --batch-size, ")
            print(f"warning: step {step}: for {self._flat} steps all completions of {which} got equal rewards, or "
                  f"none, so nothing is learnt; try easier or harder prompts, a higher --temperature, {more}or a "
                  f"reward that tells answers apart", file=sys.stderr)

    def _has_spread(self, groups: Sequence[Group]) -> bool:
        if self._by_group:
            return any(group.has_spread for group in groups)
        rewards = rewards_of(groups)
        given, before = set(rewards[~np.isnan(rewards)].tolist()), self._before
        self._before = given or before if len(given) < 2 else set()
        return len(given | before) > 1


def time_shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """What part of the step went where, time_share/NAME."""
    total = sum(seconds.values())
    return {f"time_share/{name}": each / total for name, each in seconds.items()}
