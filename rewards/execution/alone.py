"""A second seccomp filter, for a process that shall only compute: it adds to that of the sandbox, for good.

It may start nothing, signal nobody, change no file and reach no other process, so what it does ends with it. Reading
files and memory stay; so does a thread.
"""

import ctypes
import functools
import os
import platform

from rewards.execution.seccomp import checks, filter_of, lacks, refuse

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_EPERM = 1
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("kill", "tkill", "tgkill", "prlimit64", "setrlimit", "execve", "creat", "mkdir", "mkdirat", "rename",
            "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "symlink", "symlinkat", "link", "linkat",
            "truncate", "ftruncate", "fallocate", "chmod", "fchmod", "fchmodat", "fchmodat2", "utime", "utimes",
            "utimensat", "futimesat", "socketpair", "mount", "setresuid", "capset")
"""of what the sandbox allows, all that another process could notice"""


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def stay_alone() -> None:
    """Installs the filter in this process. Raises OSError where the kernel does not take it."""
    steps = alone_filter(platform.machine())
    program = _Program(len(steps) // 8, steps)
    system = ctypes.CDLL(None, use_errno=True)
    if system.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or system.prctl(_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


@functools.cache
def alone_filter(machine: str) -> bytes:
    """The filter for a machine that the sandbox knows."""
    opening = {"open": lacks(1, _WRITING, _EPERM), "openat": lacks(2, _WRITING, _EPERM)}
    return filter_of(machine, checks() | opening | {name: [refuse(_EPERM)] for name in _CHANGES})
