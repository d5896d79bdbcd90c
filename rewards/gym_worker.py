"""In the sandbox: the verifiers of reasoning-gym's tasks, some of which evaluate the answers that they are given."""

import functools
from typing import Any

import reasoning_gym

from rewards.checked_eval import guard

TUPLES = ("arc_agi", "rearc")
"""tasks whose verifier compares their metadata's `output` with tuples, which JSON has none of"""


def score(task: str, config: dict[str, Any], answer: str, entry: dict[str, Any]) -> float:
    """What the task's own verifier gives, 0 to 1 by its rules. Raises whatever that raises."""
    if task in TUPLES:
        entry = entry | {"metadata": entry["metadata"] | {"output": _tuples(entry["metadata"]["output"])}}
    return float(_task(task, tuple(config.items())).score_answer(answer, entry))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


@functools.cache
def _task(task: str, config: tuple[tuple[str, Any], ...]) -> Any:
    return reasoning_gym.create_dataset(task, **({"size": 1, "seed": 0} | dict(config)))


guard("reasoning_gym")
