"""Choosing among the completions of a prompt by their rewards, which stand one after the other as `sample` made them.

A completion without a reward (it failed, or the reward left it out) is dropped and never chosen. `weights` of a stage
add the rewards up anew, by name; without them a completion's reward is what `sample` gave it. Every stage tells pass@k,
where a completion is right from the reward `right` on, and the share of prompts that have no right one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from curation.groups import Choosing, Group, completion_of, text_of
from curation.stages import Row, Stage
from errors import InputError


def best_of(*, keep: int = 1, weights: dict[str, float] | None = None, right: float = 1.0) -> Stage:
    """The `keep` completions of the highest reward of each prompt; of equal ones the first."""
    _check_positive("keep", keep)

    def choose(group: Group, rewards: list[float]) -> dict[int, Row | str]:
        ranked = _best_first(rewards)
        best = rewards[ranked[0]]
        return {place: group[place] if rank < keep else f"reward {rewards[place]:g} beside {best:g}"
                for rank, place in enumerate(ranked)}

    return Choosing(choose, weights, right)


def rejection_sampling(*, threshold: float = 1.0, max_per_prompt: int | None = None,
                       order: Literal["best", "first", "shortest", "different"] = "best",
                       weights: dict[str, float] | None = None, right: float = 1.0) -> Stage:
    """All completions with a reward of `threshold` or more, at most `max_per_prompt` of a prompt: those of the highest
    reward, the first, the shortest in characters, or the most different: the best one, then again and again the one
    whose words are least those of any taken before (by Jaccard)."""
    if max_per_prompt is not None:
        _check_positive("max_per_prompt", max_per_prompt)

    def choose(group: Group, rewards: list[float]) -> dict[int, Row | str]:
        good = [place for place in range(len(group)) if rewards[place] >= threshold]
        taken = _ordered(order, group, rewards, good)[:max_per_prompt]
        return {place: group[place] if place in taken else f"reward {rewards[place]:g} below {threshold:g}"
                if place not in good else f"{max_per_prompt} others of its prompt are taken ({order})"
                for place in range(len(group))}

    return Choosing(choose, weights, right)


def pairs(*, margin: float = 0.0, weights: dict[str, float] | None = None, right: float = 1.0) -> Stage:
    """A pair for DPO of each prompt: the best completion against the worst one, where it is better by more than
    `margin`. Of equal ones the first is taken. Tells how often the chosen one is the longer, and the shorter one."""
    if not margin >= 0:
        raise InputError(f"margin is {margin:g}; it takes 0 or more")

    def choose(group: Group, rewards: list[float]) -> dict[int, Row | str]:
        ranked = _best_first(rewards)
        best, worst = ranked[0], max(ranked, key=lambda place: (-rewards[place], -place))
        distance = rewards[best] - rewards[worst]
        if not distance > margin:
            return dict.fromkeys(ranked, f"its prompt's best and worst rewards are {distance:g} apart, not more than "
                                         f"{margin:g}")
        made = {place: f"neither best nor worst: reward {rewards[place]:g}" for place in ranked}
        return made | {worst: "is the rejected one of a pair", best: _pair(group[best], group[worst], rewards[best],
                                                                           rewards[worst])}

    return Choosing(choose, weights, right)


def labels(*, good: float = 1.0, bad: float | None = None, weights: dict[str, float] | None = None,
           right: float = 1.0) -> Stage:
    """Labels for KTO: true from the reward `good` on, false up to `bad`; what is between is dropped. Without `bad` all
    that is not good is bad."""
    if bad is not None and not bad < good:
        raise InputError(f"bad is {bad:g} and good {good:g}; it takes a lower one")

    def label(row: Row, reward: float) -> Row | str:
        if reward < good and bad is not None and reward > bad:
            return f"reward {reward:g}, between bad and good"
        return _remade(row, row.record | {"label": reward >= good}, "labels")

    def choose(group: Group, rewards: list[float]) -> dict[int, Row | str]:
        return {place: label(row, rewards[place]) for place, row in enumerate(group)}

    return Choosing(choose, weights, right)


def difficulty(*, low: float = 0.2, high: float = 0.8, weights: dict[str, float] | None = None,
               right: float = 1.0) -> Stage:
    """The prompts, without their completions, that `low` to `high` of these solve: those that RL learns from. `solved`
    is a column of them. A prompt stands where its first completion stood."""
    if not 0 <= low <= high <= 1:
        raise InputError(f"low is {low:g} and high {high:g}; they take shares from 0 to 1, in order")

    def choose(group: Group, rewards: list[float]) -> dict[int, Row | str]:
        solved = sum(reward >= right for reward in rewards) / len(rewards)
        if not low <= solved <= high:
            return dict.fromkeys(range(len(group)), f"{solved:.0%} of its prompt's completions are right, not "
                                                    f"{low:.0%} to {high:.0%}")
        others = dict.fromkeys(range(len(group)), "its prompt is kept, without completions")
        return others | {0: _prompt_alone(group[0], solved)}

    return Choosing(choose, weights, right)


def _best_first(rewards: Sequence[float]) -> list[int]:
    return sorted(range(len(rewards)), key=lambda place: -rewards[place])


def _ordered(order: str, group: Group, rewards: list[float], places: list[int]) -> list[int]:
    """Places among the group in the order in which they are taken."""
    if order == "different":
        return _most_different([_words(group[place]) for place in places], places, rewards)
    keys = {"best": lambda place: -rewards[place], "first": lambda place: place,
            "shortest": lambda place: len(text_of(completion_of(group[place])))}
    return sorted(places, key=keys[order])


def _most_different(words: list[set[str]], places: list[int], rewards: list[float]) -> list[int]:
    """Farthest point first, in the Jaccard distance of sets of words, from the best."""
    by_place, left, taken = dict(zip(places, words)), sorted(places, key=lambda place: -rewards[place]), []
    nearest = dict.fromkeys(places, 0.0)
    while left:
        taken.append(min(left, key=lambda place: nearest[place]))
        left.remove(taken[-1])
        for place in left:
            nearest[place] = max(nearest[place], _jaccard(by_place[place], by_place[taken[-1]]))
    return taken


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def _words(row: Row) -> set[str]:
    return set(text_of(completion_of(row)).casefold().split())


def _pair(best: Row, worst: Row, chosen_reward: float, rejected_reward: float) -> Row:
    record = {name: value for name, value in best.record.items() if name not in ("completion", *OF_TOKENS)}
    return _remade(best, record | {"chosen": completion_of(best), "rejected": completion_of(worst),
                                   "chosen_reward": chosen_reward, "rejected_reward": rejected_reward}, "pairs")


OF_TOKENS = ("completion_tokens", "top_tokens", "top_logps")
"""columns that are of a completion's tokens"""


def _prompt_alone(row: Row, solved: float) -> Row:
    """The row as it was before it was sampled."""
    dropped = ("prompt", "completion", *OF_TOKENS)
    record = row.notes["replaced"] | {name: value for name, value in row.record.items() if name not in dropped}
    return _remade(row, record | {"solved": solved}, "difficulty")


def _remade(row: Row, record: dict[str, Any], stage: str) -> Row:
    return dataclasses.replace(row, record=record, notes=row.notes | {"stage": stage})


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} is {value}; it takes 1 or more")
