"""What a sandboxed process does first: it takes its job, then gives up what the job does not need.

Runs inside the sandbox: standard library only. Limits are set here and not before the start, since a trainer with
threads must not run code between fork and exec; they are hard ones, which nothing inside can raise again.
"""

import ctypes
import json
import os
import resource
import sys
from typing import Any

from rewards.execution.seccomp import close_filter, install

_NOSUID, _NODEV, _REMOUNT = 2, 4, 32  # linux/mount.h
_SET_THP_DISABLE = 41  # linux/prctl.h
_CAPABILITIES = 0x20080522  # version 3 of linux/capability.h


def enter() -> dict[str, Any]:
    """The job, a JSON object on standard input, with its `limits` already in force; standard input is empty then.
    Modules can be imported from the folders of its `packages`, if it has one."""
    job = json.load(sys.stdin)
    sys.path += job.get("packages", [])
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if "sandbox" in job:
        give_up(**job.pop("sandbox"))
    for name, limit in job.pop("limits").items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    silence(0)
    return job


def give_up(files: int | None, user: int | None, owner: int | None, threads: int | None, room: int | None,
            forks: bool) -> None:
    """At most `files` in /tmp and at most `threads`, `user` as whose they count, `owner` as whose files are read and
    written, and no capability; None: as it is.

    Huge pages go, too: what is left of one whose other parts were unmapped keeps its memory, and no limit counts that.
    Mappings are to stay within `room` bytes of those that are there, and `forks` may go on (seccomp.py).
    """
    if files is not None:
        _call("mount", b"tmpfs", b"/tmp", None, _REMOUNT | _NOSUID | _NODEV, b"nr_inodes=%d" % files)
    _call("prctl", _SET_THP_DISABLE, 1, 0, 0, 0)
    if user is not None:
        effective = -1 if owner is None else owner
        os.setresuid(user, effective, effective)
    if threads is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (threads, threads))
    _call("capset", (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)())
    if room is not None:
        here = ctypes.cast(ctypes.CDLL(None).mmap, ctypes.c_void_p).value
        install(close_filter(range(here - room, here + room), forks))


def _call(name: str, *arguments: Any) -> None:
    """A function of the C library, those of `os` being without it. Raises OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def silence(*descriptors: int) -> None:
    """Points file descriptors at /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


def main() -> None:
    """Runs the job's `program` as a script."""
    program = enter()["program"]
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})
