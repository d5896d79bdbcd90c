"""Verifiers in processes of their own, each call bounded in time whatever the verifier does.

A process is a bare interpreter (`python -m rewards.execution.processes module:function`) and not one of
multiprocessing, which would import the training script, and with it jax, into every one of them. It imports the
function's module, says that it is ready, and then takes a JSON line a call: numbers, strings and lists alone pass
either way, and no object that a verifier made. The time bound is a timer of the kernel that ends the process even
inside one long operation on big numbers, during which no Python signal handler or thread would get its turn. With the
trainer's end, killed or not, an idle process reads the end of its input and a busy one meets its bound.
"""

import atexit
import contextlib
import functools
import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from data.specs import load_function
from rewards.contract import time_left

STARTING = 120.0
"""seconds that a process may take until it has imported its function"""
GRACE = 2.0
"""seconds beyond its time after which a process that does not end itself is killed"""
MEMORY = 4 << 30
"""bytes of address space that a process may have"""
COUNT = min(8, max(1, (os.cpu_count() or 2) // 2))
"""processes of a pool, at most"""


class VerifierError(Exception):
    """A verifier raised, or its process ended; the message says what."""


class Pool:
    """Up to `count` processes of one function, `package.module:name`, started as they are needed and started again when
    they have ended. Any number of threads may use a pool at the same time."""

    def __init__(self, target: str, count: int = COUNT):
        self.target, self.count = target, count
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def map(self, calls: Sequence[Sequence[Any]], timeout: float) -> list[Any]:
        """What the function returns for each list of arguments, or the exception in its place: TimeoutError after
        `timeout` seconds of its own or when the reward's time_left() is over, VerifierError for what it raises."""
        lines = [json.dumps({"arguments": list(call), "timeout": timeout}) for call in calls]
        futures: list[Future] = [Future() for _ in lines]
        for future, line in zip(futures, lines):
            self._calls.put((future, line, timeout))
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
            future, line, timeout = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue  # nobody waits for it any more
            try:
                process = process if process is not None and process.alive() else _Process(self.target)
                future.set_result(process.ask(line, timeout))
            except Exception as error:  # noqa: BLE001 - raised where the value is waited for
                future.set_exception(error)


@functools.cache
def pool(target: str) -> Pool:
    """The pool of that function, one in this process."""
    return Pool(target)


def _outcome(future: Future) -> Any:
    """A call that nobody waits for any more is taken back if it has not begun; its process meets its own bound."""
    left = time_left()
    try:
        return future.result(max(0.0, left) if left < threading.TIMEOUT_MAX else None)
    except (OSError, VerifierError) as error:  # a TimeoutError is an OSError
        future.cancel()
        return error if str(error) else TimeoutError("not reached in the time the reward has")


_started: set[subprocess.Popen] = set()


@atexit.register
def _kill_all() -> None:
    for process in list(_started):
        process.kill()


class _Process:
    """One process, ready. Raises VerifierError where it does not become so."""

    def __init__(self, target: str):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                                    "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._popen = subprocess.Popen([sys.executable, "-m", "rewards.execution.processes", target],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                       env=environment)
        _started.add(self._popen)
        ready = self._read(STARTING)
        if "error" in ready:
            self._end()
            raise VerifierError(f"{target} cannot be imported: {ready['error']}")

    def alive(self) -> bool:
        return self._popen.poll() is None

    def ask(self, line: str, timeout: float) -> Any:
        """The function's value. Raises TimeoutError, and VerifierError for what it raises or when its process ends."""
        with contextlib.suppress(BrokenPipeError):  # an end that _read tells the reason of
            self._popen.stdin.write(line.encode() + b"\n")
            self._popen.stdin.flush()
        reply = self._read(timeout)
        if "error" in reply:
            raise VerifierError(reply["error"])
        return reply["value"]

    def _read(self, seconds: float) -> dict[str, Any]:
        poll = select.poll()
        poll.register(self._popen.stdout, select.POLLIN | select.POLLHUP)
        line = self._popen.stdout.readline() if poll.poll(1000 * (seconds + GRACE)) else None
        if line and line.endswith(b"\n"):
            return json.loads(line)
        status = self._end(0.0 if line is None else GRACE)
        if line is None or status == -signal.SIGALRM:
            raise TimeoutError(f"no verdict within {seconds:g} s")
        raise VerifierError(f"the verifier's process ended with status {status}")

    def _end(self, patience: float = GRACE) -> int:
        """Its exit status; what still runs after `patience` seconds is killed."""
        try:
            status = self._popen.wait(patience)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            status = self._popen.wait()
        with contextlib.suppress(BrokenPipeError):  # what was not written yet
            self._popen.stdin.close()
        self._popen.stdout.close()
        _started.discard(self._popen)
        return status


def main(target: str) -> None:
    """In the process: serves calls until the input ends."""
    calls, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # what a verifier prints is no reply
        os.dup2(nowhere, standard)
    _keep_to_itself()
    function, ready = _try(lambda: load_function(target))
    sys.addaudithook(_refuse)  # after the imports, which may look like that
    _send(replies, ready if function is None else {"value": "ready"})
    for line in calls if function is not None else ():
        call = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, call["timeout"])
        _, reply = _try(lambda call=call: function(*call["arguments"]))
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(replies, reply)


def _keep_to_itself() -> None:
    """Signals to the whole group are the trainer's, SIGALRM ends the process, and memory is bounded."""
    import resource

    logging.disable()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # where the system knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


FORBIDDEN = ("os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.spawn",
             "os.system", "os.truncate", "ctypes.", "shutil.", "signal.pthread_kill", "socket.", "subprocess.")


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook. Verifiers do eval() what a model wrote (sympy's parse_expr is one); this is no sandbox, but keeps
    such text from commands, signals, connections and from writing files."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event.startswith(FORBIDDEN):
        raise PermissionError(f"a verifier may not: {event}")


def _try(function: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    try:
        value = function()
        return value, {"value": value}
    except Exception as error:  # noqa: BLE001 - whatever a verifier raises is reported
        return None, {"error": f"{type(error).__name__}: {error}"[:500]}


def _send(replies: Any, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main(sys.argv[1])
