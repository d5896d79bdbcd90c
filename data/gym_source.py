"""Rows of reasoning-gym's tasks, made as they are asked for: gym:TASK, gym:TASK(size=500, seed=7, min_terms=2)."""

import difflib
import json
from typing import Any

from data.records import Record
from data.specs import parse_spec
from errors import InputError

DEFAULTS = {"size": 1000, "seed": 0}


class GymSource:
    """Problems by index: `prompt` and `question` (the same), `answer` (None where any of many answers is right),
    `metadata`, and `task`, by which the rewards know their rows.

    Row i depends on task, parameters and i alone. Metadata are what JSON would give back: lists for tuples, strings as
    keys. A pickle holds the spec: the process that loads it makes the same problems again.
    """

    def __init__(self, spec: str):
        """`spec` is TASK or TASK(key=value, ...). Raises InputError for what reasoning-gym does not take."""
        self._spec, (self._task, parameters) = spec, parse_spec(spec)
        self._problems = make_task(self._task, DEFAULTS | parameters)

    def __len__(self) -> int:
        return len(self._problems)

    def __getitem__(self, index: int) -> Record:
        problem = self._problems[range(len(self))[index]]
        return {"prompt": problem["question"], "question": problem["question"], "answer": problem["answer"],
                "metadata": json.loads(json.dumps(problem["metadata"], default=str)), "task": self._task}

    def place(self, index: int) -> str:
        """`gym:spec row i`, i from 0."""
        return f"gym:{self._spec} row {range(len(self))[index]}"

    def __reduce__(self):
        return GymSource, (self._spec,)


def make_task(task: str, parameters: dict[str, Any]) -> Any:
    """The data set of reasoning-gym. Raises InputError for an unknown task and for parameters that it does not take."""
    check_task(task, parameters)
    import reasoning_gym

    size, seed = parameters.get("size"), parameters.get("seed")
    if type(size) is not int or size < 1 or type(seed) is not int or seed < 0:
        raise InputError(f"data gym:{task}: size {size!r} and seed {seed!r} must be whole numbers, of 1 and 0 on")
    try:
        return reasoning_gym.create_dataset(task, **parameters)
    except (TypeError, ValueError, AssertionError, AttributeError) as error:  # its checks raise these
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"data gym:{task}: reasoning-gym takes no such parameters ({reason}); mend them") from None


def check_task(task: str, parameters: dict[str, Any]) -> None:
    """Raises InputError for a task that reasoning-gym does not have and for parameters of other names than its own."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise InputError(f"gym:{task}: reasoning-gym cannot be imported ({error}); pip install reasoning-gym") from None
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=5, cutoff=0.5) or sorted(DATASETS)
        raise InputError(f"gym:{task}: reasoning-gym has no such task; give one like {', '.join(close)}")
    known = DATASETS[task][1].__dataclass_fields__
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise InputError(f"gym:{task}: has no parameter {unknown[0]!r}; it has {', '.join(known)}")
