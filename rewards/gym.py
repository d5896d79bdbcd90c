r"""reasoning-gym's tasks: each scores answers by its own verifier, on the rows of the source `gym:TASK`.

The answer is extracted first: what the last of \boxed{}, <answer></answer>, #### and "answer is ..." holds, else the
last number where the task's answer is a number, else as many of the last lines as it has. Many tasks give part marks
to text that merely contains the answer, and countdown gives 0.01 to anything: `gym_exact` tells what is really right.
Rows of another task (column `task`), and rows without an answer to compare with, are left out (None), so that rewards
of several tasks can be given for their mixture.
"""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from data.gym_source import check_task
from errors import InputError
from rewards.answers import completion_text, find_answer
from rewards.contract import Reward, values_or_raise
from rewards.execution.processes import pool
from rewards.execution.sandbox import check_sandbox

WORKER = "rewards.gym_worker:score"
_NO_NUMBER = re.compile(r"(?<![^\W\d])(?:nan|inf(?:inity)?)[ij]?(?![^\W\d])", re.IGNORECASE)
"""what Python reads as a number that is as far from any other as a verifier's arithmetic happens to have it"""


def make_gym(task: str, timeout: float = 5.0, unsafe: bool = False, **config: Any) -> Reward:
    """The task's score_answer of the extracted answer, mostly 0 to 1; `config` is the task's own.

    `timeout` seconds a row, of the CPU's time. 0 where the answer makes the verifier run out of it, or raise, as some
    do for what they cannot read. Verifiers run in the sandbox; with `unsafe` without one. Raises InputError where there
    is none. The reward raises RowErrors where a verifier fails on the row's own answer, too.
    """
    check_task(task, config)
    if not unsafe:
        check_sandbox()

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        entries = _entries(task, columns)
        calls = {row: (task, config, find_answer(completion_text(completion), entry["answer"] or ""), entry)
                 for row, (entry, completion) in enumerate(zip(entries, completions, strict=True)) if entry}
        astray = [row for row, (_, _, answer, entry) in calls.items() if _is_astray(answer, entry)]
        calls = {row: call for row, call in calls.items() if row not in astray}
        stored = [(task, config, entries[row]["answer"] or "", entries[row]) for row in calls]
        verdicts = pool(WORKER, unsafe=unsafe).verdicts(list(calls.values()), stored, timeout)
        scores = dict(zip(calls, verdicts, strict=True)) | dict.fromkeys(astray, 0.0)
        return values_or_raise([scores.get(row) for row in range(len(entries))])

    reward.check_columns = functools.partial(_entries, task)
    return reward


def _is_astray(answer: str, entry: dict[str, Any]) -> bool:
    """Whether an answer has nan or infinity, and the stored one has not: for some verifiers nan is near."""
    return bool(_NO_NUMBER.search(answer) and not _NO_NUMBER.search(entry["answer"] or ""))


def make_gym_exact(task: str) -> Reward:
    """1.0 where the extracted answer is the row's `answer` to the letter, but for spaces around it, else 0.0."""
    check_task(task, {})

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [_exact(entry, completion_text(completion))
                for entry, completion in zip(_entries(task, columns), completions, strict=True)]

    reward.check_columns = functools.partial(_entries, task)
    return reward


def _exact(entry: dict[str, Any] | None, text: str) -> float | None:
    if entry is None or entry["answer"] is None:
        return None
    return float(find_answer(text, entry["answer"]).strip() == entry["answer"].strip())


def _entries(task: str, columns: dict[str, Any]) -> list[dict[str, Any] | None]:
    """The rows as reasoning-gym has them; None for those of other tasks."""
    missing = [name for name in ("answer", "metadata") if name not in columns]
    if missing:
        raise InputError(f"the rows have no column {missing[0]!r} to score {task} with, only "
                         f"{', '.join(sorted(columns))}; take them from the source gym:{task}")
    rows = len(columns["answer"])
    tasks, questions = columns.get("task") or [task] * rows, columns.get("question") or [""] * rows
    return [{"question": question, "answer": answer, "metadata": _read(metadata)} if name == task else None
            for name, question, answer, metadata in zip(tasks, questions, columns["answer"], columns["metadata"])]


def _read(metadata: Any) -> Any:
    """Metadata may have been written down as JSON, which all columns of a Parquet file of one type need."""
    return json.loads(metadata) if isinstance(metadata, str) else metadata
