"""A second seccomp filter, for a process that shall only compute: it adds to that of the sandbox, for good.

It may start nothing, signal nobody, change no file and reach no other process, so what it does ends with it. Reading
files and memory stay; so does a thread.
"""

import ctypes
import functools
import os
import platform

from rewards.execution.seccomp import filter_head, refuse, refuse_processes, step

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_ALLOW, _RETURN, _LOAD, _EQUAL, _ANY_BIT, _REFUSE = 0x7FFF0000, 0x06, 0x20, 0x15, 0x45, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER = 0
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "x86_64": {
        "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "prlimit64": 302,
        "setpriority": 141, "sched_setaffinity": 203, "sched_setscheduler": 144, "sched_setparam": 142,
        "sched_setattr": 314, "ioprio_set": 251, "setpgid": 109, "setsid": 112, "execve": 59, "execveat": 322,
        "creat": 85, "mkdir": 83, "mkdirat": 258, "rename": 82, "renameat": 264, "renameat2": 316, "unlink": 87,
        "unlinkat": 263, "rmdir": 84, "symlink": 88, "symlinkat": 266, "link": 86, "linkat": 265, "truncate": 76,
        "ftruncate": 77, "fallocate": 285, "mknod": 133, "mknodat": 259, "chmod": 90, "fchmod": 91, "fchmodat": 268,
        "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "utime": 132, "utimes": 235, "utimensat": 280,
        "futimesat": 261, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "socket": 41, "socketpair": 53,
        "semget": 64, "msgget": 68, "shmget": 29},
    "aarch64": {
        "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "prlimit64": 261,
        "setpriority": 140, "sched_setaffinity": 122, "sched_setscheduler": 119, "sched_setparam": 118,
        "sched_setattr": 274, "ioprio_set": 30, "setpgid": 154, "setsid": 157, "execve": 221, "execveat": 281,
        "mkdirat": 34, "renameat": 38, "renameat2": 276, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "truncate": 45,
        "ftruncate": 46, "fallocate": 47, "mknodat": 33, "fchmod": 52, "fchmodat": 53, "fchown": 55, "fchownat": 54,
        "utimensat": 88, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "socket": 198, "socketpair": 199,
        "semget": 190, "msgget": 186, "shmget": 194}}
_NEW_CHANGES = {"pidfd_send_signal": 424, "fchmodat2": 452}
_OPENAT2 = 437
_OPEN = {"x86_64": ((2, 24), (257, 32)), "aarch64": ((56, 32),)}
"""(number, offset of its flags in struct seccomp_data) of open and openat"""


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
    changes = _CHANGES[machine] | _NEW_CHANGES
    return b"".join([*filter_head(machine), *(part for number in changes.values() for part in refuse(number, _EPERM)),
                     *refuse(_OPENAT2, _ENOSYS), *(part for call in _OPEN[machine] for part in _reading_only(*call)),
                     *refuse_processes(machine), step(_RETURN, _ALLOW)])


def _reading_only(number: int, flags: int) -> list[bytes]:
    """Refuses to open for writing, and loads the number again for who comes after."""
    return [step(_EQUAL, number, 0, 4), step(_LOAD, flags), step(_ANY_BIT, _WRITING, 0, 1),
            step(_RETURN, _REFUSE | _EPERM), step(_LOAD, _NUMBER)]
