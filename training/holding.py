"""One run, one directory: while the processes of a run write it, no other run does."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errors import InputError
from files import writing
from sharding.exchange import decided

LOCK = "run.lock"
PATIENCE = 60.0
"""seconds that a run waits for its predecessor to end: a scheduler may start it while that one is being stopped"""


@contextlib.contextmanager
def held(run: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Keeps `run` for this run's processes until the block or process 0 ends, whatever ends it.

    Raises InputError where another has it for `patience` seconds, with who that is.
    """
    with contextlib.ExitStack() as stack:
        decided(lambda: stack.enter_context(_locked(run, patience)))
        yield


def wait_until_free(run: Path, patience: float = PATIENCE) -> None:
    """Waits as `held` does, and makes nothing. Raises InputError as that does."""
    def wait() -> None:
        if (run / LOCK).exists():
            with _opened(run) as file:
                _wait(file, run, patience)

    decided(wait)


@contextlib.contextmanager
def _locked(run: Path, patience: float) -> Iterator[None]:
    """A POSIX lock: the kernel, or the NFS server, gives it back when its process is gone, and children do not inherit
    it."""
    with _opened(run) as file:
        _wait(file, run, patience)
        with writing(run):
            _write(file, json.dumps(_me()))
        yield
        with writing(run):
            _write(file, "")


def _opened(run: Path) -> Any:
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
        return (run / LOCK).open("r+" if (run / LOCK).exists() else "w+", encoding="utf-8")


def _wait(file: Any, run: Path, patience: float) -> None:
    end = time.monotonic() + patience
    told = False
    while not _take(file, run):
        holder = _holder(run)
        if time.monotonic() >= end:
            raise InputError(f"output directory {run} is being written by {holder}; wait for it, stop it, or choose "
                             f"another --output-dir")
        if not told:
            print(f"{run} is being written by {holder}; waiting up to {patience:.0f} s for its end", file=sys.stderr,
                  flush=True)
        told = True
        time.sleep(min(1.0, patience / 10))


def _take(file: Any, run: Path) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
        return False
    except OSError as error:
        print(f"note: {run}: this file system keeps no locks ({error.strerror}); see to it that one run at a time "
              f"writes there", file=sys.stderr)
    return True


def _me() -> dict[str, Any]:
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _holder(run: Path) -> str:
    """Who has it, as it wrote down; it may be about to."""
    try:
        holder = json.loads((run / LOCK).read_text())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _write(file: Any, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
