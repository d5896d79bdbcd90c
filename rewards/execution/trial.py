"""One completion's trial: its program and its tests in processes of their own, or in one, and the verdict."""

import contextlib
import dataclasses
import os
import secrets
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from rewards.execution.packages import Packages
from rewards.execution.sandbox import Limits, read, start, wait
from rewards.execution.script import READY
from rewards.execution.turns import Turn

START_SECONDS = 60.0
"""for the processes to come up, before a completion's time begins: a busy machine is not the completion's fault"""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where code runs."""

    limits: Limits
    packages: Packages = Packages()
    unsafe: bool = False


class Verdict(NamedTuple):
    """Tests passed of those there are; `open` says why others might have passed in another way, and `cannot` that in
    this way there is no verdict."""

    passed: int
    total: int
    open: str = ""
    cannot: bool = False


class BadTestsError(Exception):
    """Tests that fail whatever the completion is: the row has no verdict."""


class NotStartedError(RuntimeError):
    """A sandbox did not start."""


def in_two_processes(case: dict[str, Any], program: dict[str, str], setting: Setting, turn: Turn) -> Verdict:
    """The tests of `case` in one process, the program in another. Raises BadTestsError, NotStartedError, and
    NotReachedError where the time of the batch was over too soon."""
    with contextlib.ExitStack() as stack:
        complaints = stack.enter_context(tempfile.TemporaryFile())
        (calls, ask), (replies, reply) = os.pipe(), os.pipe()
        with _closed_at_end(calls, ask, replies, reply):
            tester = stack.enter_context(_started("tester", case | {"calls": ask, "replies": replies}, setting,
                                                  complaints, (ask, replies), subprocess.PIPE))
            candidate = stack.enter_context(_started("candidate", program | {"calls": calls, "replies": reply}, setting,
                                                     complaints, (calls, reply), subprocess.DEVNULL))
        return _verdict(_lines(tester.stdout, complaints, setting, turn, (tester.pid, candidate.pid)), turn)


def in_one_process(case: dict[str, Any], program: dict[str, str], setting: Setting, turn: Turn) -> Verdict:
    """Both in one process, which says its verdict with a key that nobody can guess. Raises as in_two_processes."""
    key = secrets.token_hex(32)
    with contextlib.ExitStack() as stack:
        complaints = stack.enter_context(tempfile.TemporaryFile())
        process = stack.enter_context(_started("shared", case | {"candidate": program, "key": key}, setting, complaints,
                                               (), subprocess.PIPE))
        lines = _lines(process.stdout, complaints, setting, turn, (process.pid,), f"{key} ")
        verdict = _verdict(lines, turn)
    return verdict if "end" in lines else verdict._replace(passed=0)


def as_script(program: str, given: str, setting: Setting, turn: Turn, max_bytes: int) -> str | None:
    """What a program prints that is given an input; None where it fails, is not done in time, or prints more than
    `max_bytes` bytes. Raises NotStartedError and NotReachedError."""
    with contextlib.ExitStack() as stack:
        complaints = stack.enter_context(tempfile.TemporaryFile())
        process = stack.enter_context(_started("script", {"program": program, "input": given}, setting, complaints, (),
                                               subprocess.PIPE))
        data = _ready(process.stdout, complaints, lambda data: data.endswith(READY))
        turn.begin(setting.limits.seconds, process.pid)
        data = _read_on(process.stdout, data, turn, max_bytes)
        status = wait(process, time.monotonic() + turn.left()) if len(data) < max_bytes else None
        if status is None:
            turn.check()
    return data.removeprefix(READY).decode(errors="replace") if status == 0 else None


def _started(module: str, job: dict[str, Any], setting: Setting, complaints: IO[bytes], descriptors: tuple[int, ...],
             stdout: Any) -> Any:
    packages = setting.packages
    return start(module, job | {"packages": packages.path, "package_files": packages.readable}, setting.limits,
                 unsafe=setting.unsafe, descriptors=descriptors, stdout=stdout, stderr=complaints,
                 readable=packages.readable)


def _lines(verdict: IO[bytes], complaints: IO[bytes], setting: Setting, turn: Turn, pids: tuple[int, ...],
           key: str = "") -> list[str]:
    """What is said, `ready N` first, as far as it is said in time; with a key only lines that have it, without it."""
    data = _ready(verdict, complaints, lambda data: data.endswith(b"\n"))
    turn.begin(setting.limits.seconds, *pids)
    data = _read_on(verdict, data, turn, 2**20)
    lines = data.decode(errors="replace").splitlines()
    return [line.removeprefix(key) for line in lines if line.startswith(key)]


def _ready(file: IO[bytes], complaints: IO[bytes], enough: Callable[[bytes], bool]) -> bytes:
    """The first line."""
    data = read(file, time.monotonic() + START_SECONDS, 65536, enough)
    if b"\n" not in data:
        complaints.seek(0)
        message = complaints.read().decode(errors="replace").strip()
        raise NotStartedError(f"the sandbox did not start: {message[-1000:]}")
    return data


def _read_on(file: IO[bytes], data: bytes, turn: Turn, max_bytes: int) -> bytes:
    """To the end of the file, of the turn, or to `max_bytes` bytes."""
    while len(data) < max_bytes and (left := turn.left()):
        more = _more(file, left)
        if more == b"":
            break
        data += more or b""
    return data


def _more(file: IO[bytes], seconds: float) -> bytes | None:
    """What comes next, nothing at the end; None where nothing comes in time."""
    ready, _, _ = select.select([file], [], [], seconds)
    return os.read(file.fileno(), 65536) if ready else None


def _verdict(lines: list[str], turn: Turn) -> Verdict:
    words = {line.partition(" ")[0]: line.partition(" ")[2] for line in lines}
    if "bad" in words:
        raise BadTestsError(f"bad unit tests: {words['bad']}")
    total = int(words.get("ready") or 0)
    if "cannot" in words or "doubt" in words:
        return Verdict(lines.count("1"), total, words.get("cannot") or words["doubt"], "cannot" in words)
    if lines.count("1") < total:
        turn.check()
    return Verdict(lines.count("1"), total)


@contextlib.contextmanager
def _closed_at_end(*descriptors: int) -> Iterator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
