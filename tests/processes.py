"""Scripts by real processes of one run on this machine, most of all scripts.sft on the tiny model: started, waited
for, killed."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import simulated

from training.checkpoints import finished_steps

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "fixtures" / "families" / "smollm2"
WAIT = 240
"""seconds after which a process that should have ended counts as hanging"""
PYTHON_ALONE = """import os, sys
sys.stdout = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
"""
"""Gloo prints to standard output, in pieces that break a program's own lines: only what Python prints comes out."""


@contextlib.contextmanager
def started(run: Path, *flags, count: int = 1, devices: int = 1) -> Iterator[list[subprocess.Popen]]:
    """`count` processes of one run with `devices` simulated devices each; modules beside `run` can be imported."""
    with launched("sft", "--model", TINY, "--output-dir", run, "--dtype", "float32", "--learning-rate", "1e-2", *flags,
                  count=count, devices=devices, path=run.parent) as processes:
        yield processes


@contextlib.contextmanager
def launched(script: str, *flags, count: int = 1, devices: int = 1,
             path: Path = ROOT) -> Iterator[list[subprocess.Popen]]:
    """`count` processes of scripts.NAME together, with `devices` simulated devices each; modules in `path` can be
    imported."""
    command = [sys.executable, "-m", f"scripts.{script}", *flags]
    environment = os.environ | simulated.environment(devices) | {"PYTHONPATH": str(path)}
    processes = [subprocess.Popen([str(part) for part in [*command, *hosts]], cwd=ROOT, env=environment, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for hosts in _hosts(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def start_program(program: str, *arguments, ids: tuple[int, ...], devices: int = 1) -> list[subprocess.Popen]:
    """Processes of a Python program, which is told where they meet, its number, and `arguments`."""
    address = f"localhost:{_free_port()}"
    command = [sys.executable, "-c", PYTHON_ALONE + program, address]
    return [subprocess.Popen([*command, str(number), *map(str, arguments)], cwd=ROOT, text=True,
                             env=os.environ | simulated.environment(devices), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE) for number in ids]


def _hosts(count: int) -> list[list[str]]:
    if count == 1:
        return [[]]
    address = f"127.0.0.1:{_free_port()}"
    return [["--hosts.coordinator", address, "--hosts.num-processes", str(count),
             "--hosts.process-id", str(number)] for number in range(count)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def ended(processes: list[subprocess.Popen]) -> list[str]:
    """What each printed to standard output; all ended well."""
    printed = [process.communicate(timeout=WAIT) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    return [out for out, _ in printed]


def finish(run: Path, *flags, count: int = 1, devices: int = 1) -> None:
    with started(run, *flags, count=count, devices=devices) as processes:
        ended(processes)


def wait_for_checkpoint(processes: list[subprocess.Popen], run: Path, step: int) -> None:
    """Until a checkpoint of `step` or later is whole."""
    deadline = time.monotonic() + WAIT
    while not any(done >= step for done in finished_steps(run / "checkpoints")):
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill_one(processes: list[subprocess.Popen], run: Path, step: int, which: int) -> list[str]:
    """SIGKILL to one of them a random moment after the checkpoint; what the others say on standard error as they end,
    by themselves and not with status 0."""
    wait_for_checkpoint(processes, run, step)
    time.sleep(random.uniform(0, 0.2))
    processes[which].kill()
    others = processes[:which] + processes[which + 1:]
    errors = [process.communicate(timeout=90)[1] for process in others]
    assert all(process.returncode for process in others), errors
    return errors
