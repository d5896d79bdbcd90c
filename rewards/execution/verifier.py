"""In the sandbox: a verifier's function, imported once, and a child for every call that ends with it.

What one answer does to the process that reads it is gone with that process: the next answer meets a fresh copy of what
was there before the first. A child may make no process, end none, write no file, and holds none of the pipes to the
trainer: all that it can say is a value on a pipe of its own, which is read here.

A call is a JSON line {"id", "arguments", "seconds", "patience"}; the reply carries the same id and one of `value`,
`error` (what the function raised), `late` (it used up its seconds of the CPU's time), `stalled` (it did not get them
within `patience` seconds of the clock) and `ended` (the child's exit status).
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from rewards.execution.alone import stay_alone
from rewards.execution.inside import enter, silence

LONGEST_VALUE = 1 << 20
PIPE = 3
"""the number of the child's pipe, the only file it has besides the standard ones"""


def main() -> None:
    """Serves calls until the input ends."""
    job = enter()
    sys.path[:0] = job["path"]
    os.environ["HOME"] = "/tmp"  # where libraries that look for one may write while they are imported
    with open(job["calls"], "rb") as calls, open(job["replies"], "wb") as replies:
        silence(1, 2)
        function, ready = attempt(lambda: _load(job["target"]))
        _send(replies, ready if function is None else {"value": "ready"})
        gc.freeze()  # a child's collections do not touch, and so not copy, what was there before it
        for line in calls if function is not None else ():
            call = json.loads(line)
            _send(replies, {"id": call["id"]} | in_child(function, call, job["alone"]))


def _load(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _send(replies: Any, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def attempt(function: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """(value, reply) of a call; (None, reply with the error) where it raises."""
    try:
        value = function()
        return value, {"value": value}
    except BaseException as error:  # noqa: BLE001 - SystemExit, too, is what the verifier did
        return None, {"error": f"{type(error).__name__}: {error}"[:500]}


def in_child(function: Callable[..., Any], call: dict[str, Any], alone: bool) -> dict[str, Any]:
    """What a call gives in a process of its own, without `id`."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _be_child(function, call, alone, writing)
    os.close(writing)
    deadline = time.monotonic() + call["patience"]
    data = _read(reading, deadline)
    os.close(reading)
    stalled = time.monotonic() >= deadline
    if stalled or len(data) > LONGEST_VALUE:
        os.kill(child, signal.SIGKILL)
    return _reply(data, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stalled)


def _be_child(function: Callable[..., Any], call: dict[str, Any], alone: bool, writing: int) -> None:
    """Never returns."""
    status = 1
    try:
        os.dup2(writing, PIPE)
        os.closerange(PIPE + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        _bound(call["seconds"])
        if alone:
            stay_alone()
        reply = json.dumps(attempt(lambda: function(*call["arguments"]))[1]).encode()
        with open(PIPE, "wb", closefd=False) as pipe:
            pipe.write(reply + b"\n")
        status = 0
    finally:
        os._exit(status)


def _bound(seconds: float) -> None:
    """Of the CPU's time, by a timer of the kernel that ends even one long operation on big numbers; a limit behind it
    for who disarms that."""
    limit = int(seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _read(file: int, deadline: float) -> bytes:
    data = b""
    while len(data) <= LONGEST_VALUE and (left := deadline - time.monotonic()) > 0:
        if select.select([file], [], [], left)[0]:
            part = os.read(file, 65536)
            if not part:
                break
            data += part
    return data


def _reply(data: bytes, status: int, stalled: bool) -> dict[str, Any]:
    if status == 0 and data.endswith(b"\n"):
        with contextlib.suppress(ValueError):
            reply = json.loads(data)
            return {name: reply[name] for name in ("value", "error") if name in reply} or {"ended": status}
    if status in (-signal.SIGPROF, -signal.SIGXCPU) or (status == -signal.SIGKILL and not stalled and not data):
        return {"late": True}
    return {"stalled": True} if stalled else {"ended": status}
