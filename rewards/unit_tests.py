"""Code by its unit tests: the tests run in one sandbox, what the model wrote in another, with a pipe between them.

A completion that shares a process with its tests can win without solving the task: os._exit(0), an object that equals
everything, a patched `assert`, a printed pass mark. Here it only answers calls. Its answers arrive in the tests'
process as plain builtin values, are compared there, and the verdict comes from there alone (tester.py, candidate.py).

Arguments and answers are copies: a function that changes its argument in place must be tested by what it returns.
"""

import contextlib
import dataclasses
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from errors import InputError
from rewards.code_text import code_of
from rewards.contract import Reward, time_left, values_or_raise
from rewards.execution.sandbox import Limits, check_sandbox, read, start

COLUMNS = ("test_list", "tests", "test")
"""where a row's tests are looked for, in this order"""
_FURTHER = ("test_imports", "test_setup_code", "entry_point", "prompt")
START_SECONDS = 60.0
"""for both processes to come up, before a completion's time begins: a busy machine is not the completion's fault"""


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

    Raises InputError where there is no sandbox, no column of COLUMNS, or a row's tests cannot run whatever the answer.
    """
    return make_unit_tests()(prompts, completions, **columns)


def unit_tests_share(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """As unit_tests, but the share of the row's tests that a completion passes."""
    return make_unit_tests(share=True)(prompts, completions, **columns)


def make_unit_tests(timeout: float = 6.0, memory_mb: int = 512, unsafe: bool = False, share: bool = False,
                    workers: int | None = None) -> Reward:
    """A reward function with limits of its own.

    `timeout` is in seconds of wall time for a completion with all of its tests; tests not reached by then have failed.
    `memory_mb` MiB each for the completion and the tests. `unsafe` runs them without a sandbox. `workers` completions
    run at once; None: one a core. Raises InputError where there is no sandbox. The reward raises RowErrors where a
    sandbox does not start.
    """
    if not unsafe:
        check_sandbox()
    limits = Limits(seconds=timeout, memory_mb=memory_mb)

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        cases = [read_case(index, prompt, columns) for index, prompt in enumerate(prompts)]
        deadline = time.monotonic() + time_left()

        def judge(index: int, case: Case | None, completion: Any) -> float | Exception | None:
            if case is None:
                return None
            if time.monotonic() > deadline:
                return TimeoutError("the reward's time was over before this row's turn")
            try:
                passed, total = count_passed(case, code_of(completion), limits, unsafe)
            except InputError as error:
                raise InputError(f"row {index} of {len(cases)}: {error}, in {case.tests[0][:80]!r}") from None
            except RuntimeError as error:
                return error
            return passed / total if share else float(passed == total)

        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            rows = zip(range(len(cases)), cases, completions, strict=True)
            return values_or_raise(list(pool.map(lambda row: judge(*row), rows)))

    reward.__name__ = "unit_tests_share" if share else "unit_tests"
    return reward


def read_case(index: int, prompt: Any, columns: dict[str, Any]) -> Case | None:
    """The tests of row `index`; None where it has none. Raises InputError where no row can have any.

    Columns as the field writes them: MBPP's test_list with test_setup_code and test_imports; HumanEval's test (a
    function `check`) with entry_point and the prompt, a stub; or tests, a text or a list of texts.
    """
    if not any(name in columns for name in COLUMNS):
        raise InputError(f"unit tests are in a column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; "
                         f"there are {', '.join(sorted(columns)) or 'no columns'}")
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


def count_passed(case: Case, code: str, limits: Limits, unsafe: bool = False) -> tuple[int, int]:
    """(tests passed, tests) of a program: whatever it does is its own doing.

    Raises InputError for tests that fail whatever the program, RuntimeError for a sandbox that does not start.
    """
    with _verdict(case, code, limits, unsafe) as (verdict, complaints):
        first = read(verdict, time.monotonic() + START_SECONDS, 65536, lambda data: data.endswith(b"\n")).decode()
        total = first.count("\n") and _total(first.splitlines()[0])
        if not total:
            complaints.seek(0)
            message = complaints.read().decode(errors="replace").strip()
            raise RuntimeError(f"the sandbox did not start: {message[-1000:]}")
        lines = first.splitlines()[1:]
        if len(lines) < total:
            lines += read(verdict, time.monotonic() + limits.seconds, 65536 + 2 * total).decode().splitlines()
    if lines and lines[-1].startswith("bad"):
        _total(lines[-1])
    return lines.count("1"), total


def _total(line: str) -> int:
    """The number of tests, of the line `ready N`. Raises InputError for `bad REASON`."""
    word, _, rest = line.partition(" ")
    if word == "bad":
        raise InputError(f"bad unit tests: {rest}")
    return int(rest)


@contextlib.contextmanager
def _verdict(case: Case, code: str, limits: Limits, unsafe: bool) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """What the tester says, and the file with what both processes complain of before they run what is not ours."""
    stub, program = program_of(case, code)
    with contextlib.ExitStack() as stack:
        complaints = stack.enter_context(tempfile.TemporaryFile())
        (calls, ask), (replies, reply) = os.pipe(), os.pipe()
        with _closed_at_end(calls, ask, replies, reply):
            tester = stack.enter_context(start(
                "tester", dataclasses.asdict(case) | {"calls": ask, "replies": replies}, limits, unsafe=unsafe,
                descriptors=(ask, replies), stdout=subprocess.PIPE, stderr=complaints))
            stack.enter_context(start(
                "candidate", {"stub": stub, "program": program, "calls": calls, "replies": reply}, limits,
                unsafe=unsafe, descriptors=(calls, reply), stderr=complaints))
        yield tester.stdout, complaints


@contextlib.contextmanager
def _closed_at_end(*descriptors: int) -> Iterator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
