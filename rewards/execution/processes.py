"""Verifiers in sandboxes of their own: what reads a model's text holds nothing of the trainer's, and no text outlives
its verdict.

A process (verifier.py) imports the verifier's function once and forks for every call. Numbers, strings and lists alone
pass either way, as JSON. A request carries an id that nobody can guess; a process that replies with another is ended.
Time is counted on the CPU's clock, so a busy machine makes no answer wrong, and given in two rounds: what is not done
after FIRST_SECONDS has to wait until every other row had as much, so no row can keep others from their verdicts.
"""

import atexit
import contextlib
import functools
import json
import math
import os
import queue
import secrets
import select
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any

from rewards.contract import NotReachedError, time_left
from rewards.execution.cpus import cpus
from rewards.execution.packages import import_folders
from rewards.execution.sandbox import Limits, start

IMPORT_SECONDS = 120.0
"""that a process may take until it has imported its function"""
FIRST_SECONDS = 0.5
"""of a call's time in the first round"""
PATIENCE, START_SECONDS = 6.0, 5.0
"""times the seconds of a call, and so many more, may pass on the clock of a busy machine"""
GRACE = 5.0
"""seconds of the clock, beyond what a process takes itself, after which it is ended"""
LOOKS = 0.25
"""seconds between looks at whether the reward still has time"""
LIMITS = Limits(seconds=float("inf"), memory_mb=4096, disk_mb=64, open_files=256)
COUNT = min(8, max(1, cpus() // 2))
"""processes of a pool, at most"""


class VerifierError(Exception):
    """A verifier raised, or its process ended; the message says what."""


class Pool:
    """Up to `count` processes of one function, `package.module:name`, started as they are needed and started again when
    they have ended. Any number of threads may use a pool at the same time. The function's module is one of rewards/, or
    of a folder in `readable`; `unsafe` runs it without a sandbox."""

    def __init__(self, target: str, count: int = COUNT, readable: Sequence[str] = (), unsafe: bool = False):
        self.target, self.count, self.readable, self.unsafe = target, count, tuple(readable), unsafe
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def verdicts(self, calls: Sequence[Sequence[Any]], stored: Sequence[Sequence[Any]],
                 timeout: float) -> list[float | Exception]:
        """As map(); but 0.0 for a call whose verifier ran out of its time or memory, raised or died, where it gives a
        verdict on the call in the same place of `stored`, with an answer that is known to be right: then the answer
        was to blame, and else the verifier is."""
        outcomes = self._round(calls, min(timeout, FIRST_SECONDS))
        failed = [row for row, outcome in enumerate(outcomes) if _may_be_to_blame(outcome)]
        sound = self._sound([stored[row] for row in failed], timeout)
        self._second_round(calls, outcomes, timeout)
        blamed = {row for row, each in zip(failed, sound) if each and _may_be_to_blame(outcomes[row])}
        return [0.0 if row in blamed else _verdict(outcome) for row, outcome in enumerate(outcomes)]

    def map(self, calls: Sequence[Sequence[Any]], timeout: float) -> list[Any]:
        """What the function returns for each list of arguments, or the exception in its place: TimeoutError after
        `timeout` seconds of the CPU's time, NotReachedError when the reward's time_left() is over before,
        VerifierError for what it raises."""
        outcomes = self._round(calls, min(timeout, FIRST_SECONDS))
        self._second_round(calls, outcomes, timeout)
        return outcomes

    def _second_round(self, calls: Sequence[Sequence[Any]], outcomes: list[Any], timeout: float) -> None:
        """Those that were not done in the first one get all of their time."""
        late = [row for row, outcome in enumerate(outcomes) if type(outcome) is TimeoutError]
        again = self._round([calls[row] for row in late], timeout) if timeout > FIRST_SECONDS else []
        for row, outcome in zip(late, again):
            outcomes[row] = outcome

    def _sound(self, calls: Sequence[Sequence[Any]], timeout: float) -> list[bool]:
        """Of each call whether it gives a verdict; equal ones are made once."""
        lines = [json.dumps(list(call)) for call in calls]
        different = list(dict.fromkeys(lines))
        outcomes = dict(zip(different, self._round([json.loads(line) for line in different], timeout)))
        return [not isinstance(_verdict(outcomes[line]), Exception) for line in lines]

    def _round(self, calls: Sequence[Sequence[Any]], seconds: float) -> list[Any]:
        futures: list[Future] = [Future() for _ in calls]
        deadline = time.monotonic() + time_left()
        for future, call in zip(futures, calls):
            self._calls.put((future, list(call), seconds, deadline))
        self._start_threads(len(calls))
        return [_outcome(future) for future in futures]

    def _start_threads(self, wanted: int) -> None:
        with self._lock:
            while len(self._threads) < min(self.count, wanted):
                self._threads.append(threading.Thread(target=self._serve, daemon=True))
                self._threads[-1].start()

    def _serve(self) -> None:
        """A thread and its process, which it takes from one call to the next."""
        process = None
        while True:
            future, arguments, seconds, deadline = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue  # nobody waits for it any more
            try:
                if process is not None and not process.alive():
                    process.end()
                    process = None
                process = process or _Process(self)
                future.set_result(process.ask(arguments, seconds, deadline))
            except Exception as error:  # noqa: BLE001 - raised where the value is waited for
                future.set_exception(error)


@functools.cache
def pool(target: str, unsafe: bool = False) -> Pool:
    """The pool of that function, one in this process."""
    return Pool(target, unsafe=unsafe)


def _verdict(outcome: Any) -> float | Exception:
    """A finite number, or what went wrong."""
    if isinstance(outcome, Exception):
        return outcome
    if isinstance(outcome, (int, float)) and math.isfinite(outcome):
        return float(outcome)
    return VerifierError(f"the verifier gave no finite number but {str(outcome)[:80]!r}")


def _may_be_to_blame(outcome: Any) -> bool:
    verdict = _verdict(outcome)
    return isinstance(verdict, Exception) and not isinstance(verdict, NotReachedError)


def _outcome(future: Future) -> Any:
    """A call that nobody waits for any more is taken back if it has not begun, and else ended by its process."""
    while not future.done() and time_left() > 0:
        wait([future], max(0.0, min(LOOKS, time_left())))
    try:
        return future.result(0)
    except (OSError, VerifierError) as error:  # a TimeoutError is an OSError
        future.cancel()
        return error if str(error) else NotReachedError("not reached in the time the reward has")


_started: set["_Process"] = set()


@atexit.register
def _end_all() -> None:
    for process in list(_started):
        process.end()


class _Process:
    """One process, ready. Raises VerifierError where it does not become so."""

    def __init__(self, pool: Pool):
        self.serves = pool
        self._stack = contextlib.ExitStack()
        _started.add(self)
        try:
            self._start(pool)
            ready = self._reply(IMPORT_SECONDS)
            if "error" in ready:
                raise VerifierError(f"{pool.target} cannot be imported: {ready['error']}")
        except BaseException:
            self.end()
            raise

    def _start(self, pool: Pool) -> None:
        (calls, asking), (replying, replies) = os.pipe(), os.pipe()
        hold = self._stack.enter_context
        self._asking, self._replying = hold(os.fdopen(asking, "wb")), hold(os.fdopen(replying, "rb"))
        self._complaints = hold(tempfile.TemporaryFile())  # noqa: SIM115 - closed with the others
        readable = [*pool.readable, *import_folders()]
        path = [*pool.readable, *filter(None, sys.path)] if pool.unsafe else readable
        job = {"target": pool.target, "path": path, "calls": calls, "replies": replies, "alone": not pool.unsafe}
        try:
            self._popen = hold(start("verifier", job, LIMITS, unsafe=pool.unsafe, descriptors=(calls, replies),
                                     readable=readable, forks=True, stderr=self._complaints))
        finally:
            os.close(calls), os.close(replies)

    def alive(self) -> bool:
        return self._popen.poll() is None

    def ask(self, arguments: list[Any], seconds: float, deadline: float) -> Any:
        """The function's value. Raises TimeoutError for a call that used up its time, NotReachedError for one that was
        not given it before `deadline` (of time.monotonic) or by a busy machine, and VerifierError for what the function
        raises or when a process ends."""
        identity = secrets.token_hex(16)
        patience = max(0.0, min(PATIENCE * seconds + START_SECONDS, deadline - time.monotonic()))
        line = json.dumps({"id": identity, "arguments": arguments, "seconds": seconds, "patience": patience})
        with contextlib.suppress(BrokenPipeError):  # an end that _reply tells the reason of
            self._asking.write(line.encode() + b"\n")
            self._asking.flush()
        reply = self._reply(patience + GRACE)
        if not secrets.compare_digest(str(reply.pop("id", "")), identity):
            self.end()
            raise VerifierError("the verifier's process gave a reply that nobody had asked for, and was ended")
        if "late" in reply:
            raise TimeoutError(f"no verdict within {seconds:g} s")
        if "stalled" in reply:
            raise NotReachedError(f"in {patience:.1f} s of the clock the verifier did not get its {seconds:g} s of CPU")
        if "value" not in reply:
            raise VerifierError(reply.get("error") or f"the verifier's process ended with status {reply.get('ended')}")
        return reply["value"]

    def _reply(self, seconds: float) -> dict[str, Any]:
        ready, _, _ = select.select([self._replying], [], [], seconds)
        line = self._replying.readline() if ready else b""
        if line.endswith(b"\n"):
            return json.loads(line)
        self._complaints.seek(0)
        message = self._complaints.read()[-500:].decode(errors="replace").strip()
        self.end()
        raise VerifierError(f"the verifier's process {'ended' if ready else 'does not reply'}: {message}"[:500])

    def end(self) -> None:
        """Ends the process and all in it, closes its files."""
        _started.discard(self)
        with contextlib.suppress(BrokenPipeError):  # what was not written yet
            self._stack.close()
