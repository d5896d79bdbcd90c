"""The completions of a prompt, decided on together: their rewards, what is made of each, and what is told of all."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from curation.stages import Drop, Row
from errors import InputError

Group = list[Row]
Choice = Callable[[Group, list[float]], dict[int, Row | str]]
"""the graded completions of a prompt and their rewards -> for each place among them the row that is made of it, or why
it is dropped"""


class Choosing:
    """The stage that makes a choice for each prompt, and what it tells at the end."""

    def __init__(self, choose: Choice, weights: dict[str, float] | None, right: float):
        self._choose, self._weights, self._right = choose, weights, right
        self._groups: Counter[tuple[int, int]] = Counter()
        self._longer: Counter[str] = Counter()

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Drop]:
        for _, group in itertools.groupby(rows, key=lambda row: row.place):
            yield from self._decide(list(group))

    def _decide(self, group: Group) -> Iterator[Row | Drop]:
        rewards = [reward_of(row, self._weights) for row in group]
        graded = [place for place, reward in enumerate(rewards) if reward is not None]
        self._groups[len(graded), sum(rewards[place] >= self._right for place in graded)] += 1
        some, their_rewards = [group[place] for place in graded], [rewards[place] for place in graded]
        chosen = self._choose(some, their_rewards) if graded else {}
        made = {graded[place]: each for place, each in chosen.items()}
        kept = next((each for each in made.values() if isinstance(each, Row)), None)
        for place, row in enumerate(group):
            each = made.get(place, f"no reward: {row.notes.get('failed') or 'the reward left it out'}")
            self._count_lengths(each)
            yield each if isinstance(each, Row) else Drop(row, each, kept and (*kept.place, kept.sample))

    def _count_lengths(self, made: Row | str) -> None:
        if isinstance(made, Row) and "chosen" in made.record:
            chosen, rejected = (len(text_of(made.record[name])) for name in ("chosen", "rejected"))
            self._longer["longer" if chosen > rejected else "shorter" if chosen < rejected else "equal"] += 1

    def summary(self) -> dict[str, Any]:
        """Of all prompts: how many, pass@1, 2, 4, ... and the share without a right answer."""
        found = summarise(self._groups)
        return found | {f"chosen_{name}": count for name, count in sorted(self._longer.items())}


def summarise(groups: Mapping[tuple[int, int], int]) -> dict[str, Any]:
    """Of a count for each (completions, right ones) of prompts: pass@k as 1 - C(n - c, k) / C(n, k), unbiased (Chen et
    al. 2021), over the prompts that have k completions or more."""
    graded = {each: count for each, count in groups.items() if each[0]}
    total, longest = sum(graded.values()), max((n for n, _ in graded), default=0)
    found: dict[str, Any] = {"prompts": sum(groups.values()), "prompts_without_reward": sum(groups.values()) - total}
    for k in itertools.takewhile(lambda k: k <= longest, (2**power for power in itertools.count())):
        chances = {each: 1 - math.comb(each[0] - each[1], k) / math.comb(each[0], k) for each in graded if each[0] >= k}
        found[f"pass@{k}"] = statistics.fmean(chances.values(), [graded[each] for each in chances])
    if total:
        found["share_without_right"] = sum(count for (_, right), count in graded.items() if not right) / total
    return found


def reward_of(row: Row, weights: Mapping[str, float] | None = None) -> float | None:
    """A completion's reward, or its rewards times these weights; None where one failed or there is none. Raises
    InputError where it was never graded, or not by a reward of that name."""
    if "reward" not in row.notes:
        raise InputError(f"{row.source} row {row.index} has no reward; put a stage sample with rewards before this one")
    if weights is None or row.notes["reward"] is None:
        return row.notes["reward"]
    values = row.notes["rewards"]
    unknown = next((name for name in weights if name not in values), None)
    if unknown is not None:
        raise InputError(f"{row.source} row {row.index} has no reward {unknown!r}, only {', '.join(values)}; mend "
                         f"weights")
    counted = [weight * values[name] for name, weight in weights.items() if values[name] is not None]
    return math.fsum(counted) if counted else None


def completion_of(row: Row) -> Any:
    """A row's completion, a string or messages. Raises InputError for one that has none, a pair or a prompt alone."""
    if "completion" not in row.record:
        raise InputError(f"{row.source} row {row.index} has no completion, only {', '.join(sorted(row.record))}; put "
                         f"the stage before the one that makes pairs or prompts")
    return row.record["completion"]


def text_of(completion: Any) -> str:
    """A completion's text, a string or messages."""
    return completion if isinstance(completion, str) else "\n".join(str(each["content"]) for each in completion)
