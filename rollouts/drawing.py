"""The groups of a step: drawn, graded, and, where they teach nothing, replaced by others."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.prompts import Prompt
from rollouts.episodes import Group, rewards_of

Collect = Callable[[Sequence[Prompt], int, Callable[[int], None]], Iterable[Group]]
"""(prompts, number of the try, what is told of episodes as they end) -> groups in any order"""


class Draw(NamedTuple):
    """What a step has drawn."""

    groups: list[Group]
    """all, in the order of their prompts; `number` is their place"""
    trained: list[Group]
    """those that are trained on, as many as prompts were asked for"""
    seconds: dict[str, float]
    """that `rollout` took, and how long `reward` went on after it, of all"""
    compared: Sequence[Group] = ()
    """answers that are drawn for advantages to compare with, and not trained on; numbered after all others"""


def draw_groups(next_prompts: Callable[[], Sequence[Prompt]], collect: Collect, max_tries: int) -> Draw:
    """Groups of the next prompts.

    With max_tries above 1, those whose rewards are all equal, which teach nothing, are replaced by groups of the
    prompts after them: DAPO's dynamic sampling (arXiv:2503.14476, section 3.2). After the last try, groups without
    spread fill up.
    """
    prompts = next_prompts()
    groups, seconds = collect_all(prompts, collect)
    for number in range(1, max_tries):
        if sum(group.has_spread for group in groups) >= len(prompts):
            break
        more, more_seconds = collect_all(next_prompts(), collect, number)
        for group in more:
            group.number += len(groups)
        groups, seconds = groups + more, _added(seconds, more_seconds)
    chosen = sorted(groups, key=lambda group: not group.has_spread) if max_tries > 1 else groups
    return Draw(groups, chosen[: len(prompts)], seconds)


def collect_all(prompts: Sequence[Prompt], collect: Collect, number: int = 0) -> tuple[list[Group], dict[str, float]]:
    """The groups in the order of their prompts, and the seconds that it took."""
    start = sampled = time.perf_counter()

    def advance(count: int) -> None:
        nonlocal sampled
        sampled = time.perf_counter() if count else sampled

    groups = sorted(collect(prompts, number, advance), key=lambda group: group.number)
    return groups, {"rollout": sampled - start, "reward": time.perf_counter() - sampled}


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one[name] + other[name] for name in one}


def compared_with(draw: Draw, prompts: Sequence[Prompt], collect: Collect) -> tuple[Draw, np.ndarray]:
    """(the draw with what `collect` answers to further prompts, the rewards [P, G] of these answers)."""
    groups, seconds = collect_all(prompts, collect)
    for group in groups:
        group.number += len(draw.groups) + len(draw.compared)
    return draw._replace(compared=[*draw.compared, *groups], seconds=_added(draw.seconds, seconds)), rewards_of(groups)


def greedy_rewards(draw: Draw, collect: Collect) -> tuple[Draw, np.ndarray]:
    """(the draw, what the likeliest answer to each trained row's prompt is worth [N], NaN where it got no reward);
    `collect` answers each prompt once."""
    draw, rewards = compared_with(draw, [group.prompt for group in draw.trained], collect)
    return draw, np.repeat(rewards[:, 0], [len(group.episodes) for group in draw.trained])
