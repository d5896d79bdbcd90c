"""A further seccomp filter, for a process that shall only compute: it adds to that of the sandbox, for good.

It may start nothing, signal nobody, change no file and reach no other process, so what it does ends with it. Reading
files and memory stay; so does a thread.
"""

import functools
import os

from rewards.execution.seccomp import checks, filter_of, install, lacks, refuse

_EPERM = 1
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("kill", "tkill", "tgkill", "prlimit64", "setrlimit", "execve", "creat", "mkdir", "mkdirat", "rename",
            "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "symlink", "symlinkat", "link", "linkat",
            "truncate", "ftruncate", "fallocate", "chmod", "fchmod", "fchmodat", "fchmodat2", "utime", "utimes",
            "utimensat", "futimesat", "socketpair")
"""of what the sandbox allows, all that another process could notice"""


def stay_alone() -> None:
    """Installs the filter in this process. Raises OSError where the kernel does not take it."""
    install(alone_filter(os.uname().machine))


@functools.cache
def alone_filter(machine: str) -> bytes:
    """The filter for a machine that the sandbox knows."""
    opening = {"open": lacks(1, _WRITING, _EPERM), "openat": lacks(2, _WRITING, _EPERM)}
    return filter_of(machine, checks() | opening | {name: [refuse(_EPERM)] for name in _CHANGES})
