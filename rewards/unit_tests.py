"""Code by its unit tests: the tests run in one sandbox, what the model wrote in another, with a pipe between them.

A completion that shares a process with its tests can win without solving the task: os._exit(0), an object that equals
everything, a patched `assert`, a printed pass mark. Here it only answers calls. Its answers arrive in the tests'
process as values that are built there, are compared there, and the verdict comes from there alone (tester.py,
candidate.py). What two processes cannot run (a test that replaces what the candidate calls, or derives from its
classes) runs in one, where the isolation that was asked for allows it (shared.py).
"""

import collections
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from errors import InputError
from rewards.code_text import code_of
from rewards.contract import Reward, values_or_raise
from rewards.execution.packages import allowed, as_names
from rewards.execution.sandbox import Limits, check_sandbox
from rewards.execution.trial import Setting, Verdict, in_one_process, in_two_processes
from rewards.execution.turns import Turn, in_turns

COLUMNS = ("test_list", "tests", "test")
"""where a row's tests are looked for, in this order"""
_FURTHER = ("test_imports", "test_setup_code", "entry_point", "prompt")
Isolation = Literal["strict", "shared", "auto"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A row's tests, and what its prompt already has of the program."""

    setup: list[str]
    tests: list[str]
    split: bool = False
    """every statement of a text is a test, instead of every text"""
    entry_point: str | None = None
    """the one name that is the candidate's; None for all that the tests do not define"""
    stub: str = ""


def unit_tests(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 where a completion passes all of its row's tests, else 0.0; None for a row without tests.

    Raises InputError where there is no sandbox or no column of COLUMNS, RowErrors for rows whose tests cannot run.
    """
    return make_unit_tests()(prompts, completions, **columns)


def unit_tests_share(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """As unit_tests, but the share of the row's tests that a completion passes."""
    return make_unit_tests(share=True)(prompts, completions, **columns)


def make_unit_tests(timeout: float = 6.0, memory_mb: int = 512, unsafe: bool = False, share: bool = False,
                    workers: int | None = None, isolation: Isolation = "strict",
                    packages: Sequence[str] | None = None) -> Reward:
    """A reward function with limits of its own.

    `timeout` is in seconds of a completion's own time, with all of its tests: of the clock, less what it waited for a
    CPU; tests not reached by then have failed. `memory_mb` MiB each for the completion and the tests. `isolation`:
    "strict", two processes, and no verdict where tests need one; "shared", one process for both; "auto", two where that
    can be, else one. `packages` are the distributions that code may import (None: numpy and pytest, if installed).
    `unsafe` runs all without a sandbox. `workers` completions begin at once; None: one a CPU.

    Raises InputError where there is no sandbox or a package is not installed. The reward raises RowErrors for rows
    whose tests cannot run whatever the answer, or not in this isolation, whose sandbox does not start, or whose turn
    did not come in time.
    """
    if not unsafe:
        check_sandbox()
    setting = Setting(Limits(seconds=timeout, memory_mb=memory_mb), allowed(as_names(packages)), unsafe)
    tally = Tally("unit_tests_share" if share else "unit_tests")

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        cases = [read_case(index, prompt, columns) for index, prompt in enumerate(prompts)]
        ways: collections.Counter[str] = collections.Counter()

        def judge(row: int, turn: Turn) -> float:
            verdict = judge_case(cases[row], code_of(completions[row]), isolation, setting, turn, ways)
            return verdict.passed / verdict.total if share else float(verdict.passed == verdict.total)

        outcomes = in_turns(judge, [row for row, case in enumerate(cases) if case is not None], timeout, workers)
        tally.add(ways, len(outcomes))
        return values_or_raise([outcomes.get(row) for row in range(len(cases))])

    reward.__name__ = "unit_tests_share" if share else "unit_tests"
    reward.check_columns = check_columns
    return reward


class UndecidedError(Exception):
    """Tests that two processes cannot run, where only two are allowed: the row has no verdict."""


def judge_case(case: "Case", code: str, isolation: Isolation, setting: Setting, turn: Turn,
               ways: collections.Counter[str]) -> Verdict:
    """The verdict, by the way that the isolation allows; `ways` counts which it was. Raises UndecidedError, and what
    a trial raises."""
    stub, program = program_of(case, code)
    job, candidate = dataclasses.asdict(case), {"stub": stub, "program": program}
    if isolation != "shared":
        verdict = in_two_processes(job, candidate, setting, turn)
        if not verdict.open or isolation == "strict" and not verdict.cannot:
            ways["two processes"] += 1
            return verdict
        if isolation == "strict":
            ways["none"] += 1
            raise UndecidedError(f"not with isolation=strict: {verdict.open}; isolation=auto runs such tests")
    ways["one process"] += 1
    return in_one_process(job, candidate, setting, turn)


class Tally:
    """Says which way a reward's rows took, where one did not take the safest: whenever they have become twice as many,
    since a reward is asked about a few at a time."""

    def __init__(self, name: str):
        self._name, self._ways, self._rows, self._told = name, collections.Counter(), 0, 0

    def add(self, ways: Mapping[str, int], rows: int) -> None:
        self._ways.update(ways)
        self._rows += rows
        ways = self._ways
        if (ways["one process"] or ways["none"]) and self._rows >= 2 * self._told:
            self._told = self._rows
            print(f"reward {self._name}: {self._rows} rows, {ways['two processes']} in two processes, "
                  f"{ways['one process']} in one, {ways['none']} without a verdict (their tests need one process: "
                  f"isolation=auto)", file=sys.stderr)


def check_columns(columns: Mapping[str, Any]) -> None:
    """Raises InputError where no row can have tests."""
    if not any(name in columns for name in COLUMNS):
        raise InputError(f"unit tests are in a column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; "
                         f"there are {', '.join(sorted(columns)) or 'no columns'}")


def read_case(index: int, prompt: Any, columns: dict[str, Any]) -> Case | None:
    """The tests of row `index`; None where it has none. Raises InputError where no row can have any.

    Columns as the field writes them: MBPP's test_list with test_setup_code and test_imports; HumanEval's test (a
    function `check`) with entry_point and the prompt, a stub; or tests, a text or a list of texts.
    """
    check_columns(columns)
    row = {name: columns[name][index] for name in (*COLUMNS, *_FURTHER) if columns.get(name) is not None}
    tests = next((row[name] for name in COLUMNS if row.get(name)), None)
    if tests is None:
        return None
    if row.get("entry_point") and tests is row.get("test"):
        return Case([tests], [f"check({row['entry_point']})"], entry_point=row["entry_point"],
                    stub=code_of(row.get("prompt") or prompt))
    setup = [*_texts(row.get("test_imports")), *_texts(row.get("test_setup_code"))]
    return Case(setup, _texts(tests), split=isinstance(tests, str))


def _texts(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def program_of(case: Case, code: str) -> tuple[str, str]:
    """(stub, program) to run in this order: code that does not define the entry point goes on where the stub ends."""
    if case.entry_point is None:
        return "", code
    name = re.escape(case.entry_point)
    defined = re.search(rf"^(?:(?:async\s+)?def|class)\s+{name}\b|^{name}\s*=", code, re.MULTILINE)
    return (case.stub, code) if defined and not re.match(r"\s*^[ \t]", code, re.MULTILINE) else ("", case.stub + code)
