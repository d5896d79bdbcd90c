"""Runs checks in a process of their own: what ends that process, or never ends, is a verdict, and the next check runs.

The worker alone starts JAX, since an accelerator belongs to one process at a time. It says what it begins and what it
found; where it ends in between, it is started again behind the check that it was at.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from checks.verdicts import Check, Verdict, judge

CHECK_SECONDS = 240.0
"""after which a check counts as one that never ends"""

Make = Callable[[bool, Sequence[str]], tuple[dict[str, Any], list[Check]]]
"""(quick, parts) -> (the machine as JSON has it, its checks); called in the worker, whose path it is found by"""


class Options(NamedTuple):
    quick: bool = False
    parts: tuple[str, ...] = ()
    """all of them where none is named"""
    deadline: float = float("inf")
    """of time.time(), after which no check begins"""
    limit: float = CHECK_SECONDS


def supervise(make: Make, options: Options) -> Iterator[dict[str, Any] | Verdict]:
    """The machine, then verdicts as they come."""
    number, machine_told = 0, False
    while True:
        process, connection = _start(make, options, number)
        name, ended = ("devices", "start of JAX"), "never answered"
        try:
            while connection.poll(options.limit):
                message = json.loads(connection.recv_bytes())
                if "machine" in message and not machine_told:
                    machine_told = True
                    yield message["machine"]
                elif "begins" in message:
                    number, name = message["number"], tuple(message["begins"])
                elif "verdict" in message:
                    yield Verdict(**message["verdict"])
                elif "done" in message:
                    return
            ended = f"not ended after {options.limit:.0f} s"
        except EOFError:
            process.join(10)
            ended = f"the process ended with {_status(process.exitcode)}"
        finally:
            process.kill()
            process.join()
        yield Verdict(*name, "failed", ended)
        if name[0] == "devices":
            return
        number += 1


def _status(code: int | None) -> str:
    return f"signal {-code}" if code and code < 0 else f"status {code}"


def _start(make: Make, options: Options, number: int) -> tuple[Any, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, make, options, number), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def work(connection: Any, make: Make, options: Options, first: int) -> None:
    """The worker: checks from number `first` on."""
    def tell(**message: Any) -> None:
        connection.send_bytes(json.dumps(message).encode())

    machine, checks = make(options.quick, options.parts)
    tell(machine=machine)
    for number, check in enumerate(checks[first:], first):
        tell(begins=[check.part, check.name], number=number)
        if time.time() > options.deadline:
            verdict = Verdict(check.part, check.name, "not run", "the time is over; --max-minutes gives more")
        else:
            verdict = judge(check)
        tell(verdict=vars(verdict))
    tell(done=True)
