"""What is shown of rollouts, and where failures of rewards are written down."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError
from files import write_text, writing
from rollouts.episodes import Group, rewards_of


def log_completions(groups: Sequence[Group], step: int, count: int) -> str:
    """Prints the first group's best completions and its worst; these whole, with their prompt, as a text."""
    from rich.console import Console
    from rich.markup import escape

    console, group, [rewards] = Console(), groups[0], rewards_of(groups[:1])
    opening = last_message(group.episodes[0].opening or group.prompt.text)  # an environment's, where there is one
    order = np.argsort(-np.nan_to_num(rewards, nan=-np.inf), kind="stable").tolist()
    console.print(f"[bold]step {step}[/]  [cyan]{escape(_short(opening))}[/]")
    whole = [f"prompt: {opening}"]
    for member in dict.fromkeys([*order[: count - 1], order[-1]]):
        text = group.episodes[member].text
        reward = "  none" if np.isnan(rewards[member]) else f"{rewards[member]:6.2f}"
        console.print(f"  [bold]{reward}[/]  {escape(_short(text))}", highlight=False)
        whole.append(f"reward {reward.strip()}: {text}")
    return "\n\n".join(whole)


def last_message(text: Any) -> str:
    """The last message of a chat, without the rest; a text as it is."""
    return text if isinstance(text, str) else str(text[-1].get("content", "") if text else "")


def _short(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + " ..."


class FailureLog:
    """Writes down what rewards and environments failed on, and warns of each whenever that has become twice as much."""

    def __init__(self, path: Path):
        self._path = path
        self._counts: Counter[str] = Counter()
        self._next: dict[str, int] = {}

    def update(self, step: int, groups: Sequence[Group]) -> None:
        """Takes a step's rollouts into account."""
        log_failures(self._path, step, groups)
        failures = {failure.reward: failure for group in groups for failure in group.failures}
        self._counts.update(failure.reward for group in groups for failure in group.failures)
        for name, failure in failures.items():
            if self._counts[name] >= self._next.get(name, 1):
                self._next[name] = 2 * self._counts[name]
                print(f"warning: step {step}: {name} failed {self._counts[name]} time(s) so far, the last time with "
                      f"{' '.join(failure.error.split())}; such completions are not trained on; {self._path} has them",
                      file=sys.stderr)


def check_rewards_work(groups: Sequence[Group], path: Path) -> None:
    """Raises InputError where a reward, or an environment, has raised on every row of a step; what was late may be
    better off later. `path` has what it raised."""
    counts: Counter[str] = Counter()
    for group in groups:
        for failure in group.failures:
            counts[failure.reward] += len(group.episodes) if failure.row is None else 1
    total = sum(len(group.episodes) for group in groups)
    for failure in (failure for group in groups for failure in group.failures):
        if counts[failure.reward] >= total and not failure.error.startswith(TimeoutError.__name__):
            raise InputError(f"{failure.reward} failed on every row of the first step, with "
                             f"{' '.join(failure.error.split())}; {path} has the traceback; mend it, or give "
                             f"--rollouts.allow-failing-rewards to go on with what else there is")


def log_failures(path: Path, step: int, groups: Sequence[Group]) -> None:
    """Adds what rewards and environments failed on to a JSON-lines file, in place of what a killed run wrote from this
    step on; rows count within the group."""
    failures = [{"step": step, "group": group.number} | failure._asdict()
                for group in groups for failure in group.failures]
    if failures:
        with writing(path):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        earlier = [line for line in lines if json.loads(line)["step"] < step]
        new = [json.dumps(failure, ensure_ascii=False).encode(errors="backslashreplace").decode()
               for failure in failures]  # half a pair of surrogates, which no file holds, is escaped as JSON has it
        write_text(path, "".join(line + "\n" for line in earlier + new))
