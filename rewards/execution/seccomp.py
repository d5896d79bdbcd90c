"""The seccomp filter of the sandbox, as the kernel takes it: a list of the calls that programs may make of it.

What is not on the list does not exist (ENOSYS), and so it is with what a later kernel brings. The list is what ordinary
programs need of files, memory, time, threads and signals, and leaves out what takes memory of the kernel that no limit
of a process counts: semaphores, message queues, shared memory, files without a name in memory, keys, timers, locks of
ranges, pages in pipes, descriptors in flight, rings and rule sets. Some calls are allowed for some values of their
arguments alone:

- clone for a thread that shares its process's open files, since every table of open files has a limit of its own.
  fork and vfork get EPERM; clone3, whose flags lie in memory that a filter cannot read, does not exist, so that the C
  library falls back on clone. RLIMIT_NPROC does not hold for root, and a cgroup needs a delegated one.
- socketpair for a pair of streams, which asyncio wakes itself by. There is no socket of any family.
- fcntl for descriptors, flags and the size of a pipe, which cannot be raised. A lock of a file is said to be had: locks
  are between processes, of which there is one, and SQLite asks for them. So is it with fsync: what can be written to is
  in memory, and what is not in memory is the machine's.

Two filters are put on each other. bwrap loads the first, under which inside.py may still use the rights that it has; it
then adds the second, which takes those calls away and keeps all mappings close together: pages strewn over the address
space, or what is left of large mappings, would have tables of their own, twice as large as they are.

Format: `struct sock_filter` of linux/filter.h over `struct seccomp_data` of linux/seccomp.h, see seccomp(2).
"""

import ctypes
import os
import struct
from itertools import pairwise

from errors import InputError
from rewards.execution.syscalls import CALLS, MACHINES

_CLONE_THREAD, _CLONE_FILES = 0x10000, 0x400
_AF_UNIX, _NO_STREAM = 1, ~(1 | 0o4000 | 0o2000000) & 0xFFFFFFFF  # SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC
_UNSHARE = 2  # of close_range: a table of open files of one's own
_FCNTL = (0, 1, 2, 3, 4, 5, 1030, 1032)  # F_DUPFD, GETFD, SETFD, GETFL, SETFL, GETLK, DUPFD_CLOEXEC, GETPIPE_SZ
_LOCKS = (6, 7)  # F_SETLK, F_SETLKW
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_NAMESPACES = 0x7E020000  # CLONE_NEW...
_SECCOMP, _FILTER_MODE, _NO_NEW_PRIVILEGES = 22, 2, 38  # PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS
_THP = 41  # PR_SET_THP_DISABLE, and never the other way round
_PRCTL = (3, 15, 16, 38, 39, _THP)  # PR_GET_DUMPABLE, SET_NAME, GET_NAME, SET_NO_NEW_PRIVS, GET_NO_NEW_PRIVS
_REMOUNT = 32 | 4 | 2  # MS_REMOUNT, MS_NODEV, MS_NOSUID: of inside.py, while it has the right to
_NOBODY = 65534  # of inside.py, too: who is bound by a limit on threads stays so
_MREMAP = (0, 1)  # MREMAP_MAYMOVE
_EPERM, _ENOMEM, _EINVAL, _ENOTTY, _ENOSYS, _EAFNOSUPPORT = 1, 12, 22, 25, 38, 97

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF: word at k, three jumps, return k
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets into struct seccomp_data; both machines are little-endian
_X32 = 0x40000000  # numbers from here on are x86_64's second table of the same calls


def no_processes_filter(machine: str | None = None, forks: bool = False) -> bytes:
    """The first filter for `machine` (as os.uname() names it; None: this one), for bwrap's --seccomp. With `forks`, new
    processes are allowed: of a verifier, whose children the filter of alone.py refuses them to.

    Raises InputError for a machine whose system calls are not known here.
    """
    machine = machine or os.uname().machine
    if machine not in MACHINES:
        raise InputError(f"no system call filter for a {machine} machine (there are {', '.join(MACHINES)}), so code "
                         f"cannot be sandboxed on it; --unsafe-code-without-sandbox runs it with limits only")
    rights = {"prctl": _prctl(_SECCOMP), "setresuid": _one_of(0, (_NOBODY,), _EPERM),
              "mount": _one_of(3, (_REMOUNT,), _EPERM), "capset": []}
    return filter_of(machine, checks(forks) | rights)


def close_filter(addresses: range, forks: bool = False, machine: str | None = None) -> bytes:
    """The second filter: what is mapped, unmapped or moved lies in `addresses`, give or take 4 GiB."""
    first, last = addresses.start >> 32, addresses.stop >> 32
    anywhere = [_load_high(0), step(_EQUAL, 0, 0, 2), _load(0), step(_EQUAL, 0, 4, 0)]  # the kernel is to choose
    near = {"mmap": [*anywhere, *_within(0, first, last, _ENOMEM)], "munmap": _within(0, first, last, _EINVAL),
            "mremap": [*_one_of(3, _MREMAP, _EINVAL), *_within(0, first, last, _EINVAL)]}
    process = {"prctl": _prctl(_SECCOMP)} if forks else {"execve": [refuse(_EPERM)]}
    return filter_of(machine or os.uname().machine, checks(forks) | near | process)


def install(steps: bytes) -> None:
    """Puts a filter on this process. Raises OSError where the kernel does not take it."""
    program = _Program(len(steps) // 8, steps)
    system = ctypes.CDLL(None, use_errno=True)
    if system.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or system.prctl(_SECCOMP, _FILTER_MODE, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def filter_of(machine: str, checked: dict[str, list[bytes]]) -> bytes:
    """Steps for the calls of CALLS: what is asked of those that are `checked`, and the others are allowed."""
    arch, column = MACHINES[machine]
    numbers = {name: pair[column] for name, pair in CALLS.items() if pair[column] is not None}
    allowed = sorted(number for name, number in numbers.items() if name not in checked)
    return b"".join([*_right_table(arch), *_any_of(allowed), *(
        part for name in checked if name in numbers for part in _call(numbers[name], checked[name])), refuse(_ENOSYS)])


def checks(forks: bool = False) -> dict[str, list[bytes]]:
    """What is asked of a call, by its name, once no rights are left to use; where its steps come to their end, it is
    allowed."""
    process = [] if forks else [refuse(_EPERM)]
    thread = [*_needs(0, _CLONE_THREAD, _EPERM), *_needs(0, _CLONE_FILES, _EPERM)]
    return {
        "fork": process, "vfork": process, "clone": lacks(0, _NAMESPACES, _EPERM) if forks else thread,
        "socket": [refuse(_EAFNOSUPPORT)],
        "socketpair": [*_one_of(0, (_AF_UNIX,), _EAFNOSUPPORT), *lacks(1, _NO_STREAM, _EINVAL)],
        "fcntl": [*_not_one_of(1, _LOCKS, 0), *_one_of(1, _FCNTL, _EINVAL)],
        "ioctl": _one_of(1, _IOCTL, _ENOTTY),
        "prctl": _prctl(),
        "setresuid": [refuse(_EPERM)], "mount": [refuse(_EPERM)], "capset": [refuse(_EPERM)],
        "fsync": [refuse(0)], "fdatasync": [refuse(0)],
        "mremap": _one_of(3, _MREMAP, _EINVAL),
        "close_range": lacks(2, _UNSHARE, _EINVAL)}


def _prctl(*further: int) -> list[bytes]:
    return [*_one_of(0, (*_PRCTL, *further), _EINVAL), *_where(0, _THP, _one_of(1, (1,), _EINVAL))]


def _right_table(arch: int) -> list[bytes]:
    """Kills what calls the kernel by another table of numbers (32 bits, x32), which the rest would misread."""
    return [step(_LOAD, _ARCH), step(_EQUAL, arch, 1, 0), step(_RETURN, _KILL),
            step(_LOAD, _NUMBER), step(_AT_LEAST, _X32, 0, 1), step(_RETURN, _KILL)]


def _any_of(numbers: list[int]) -> list[bytes]:
    """Allows calls by number, a step for each run of numbers without a gap and not for each number: the whole has to
    go into a pipe."""
    firsts = [number for before, number in pairwise([-2, *numbers]) if number != before + 1]
    lasts = [number for number, after in pairwise([*numbers, numbers[-1] + 2]) if after != number + 1]
    return [part for first, last in zip(firsts, lasts) for part in (
        step(_AT_LEAST, first, 0, 2), step(_AT_LEAST, last + 1, 1, 0), step(_RETURN, _ALLOW))]


def _call(number: int, checks: list[bytes]) -> list[bytes]:
    """Steps that end here for that call; they load other words over its number."""
    return [step(_EQUAL, number, 0, len(checks) + 1), *checks, step(_RETURN, _ALLOW)]


def _one_of(argument: int, values: tuple[int, ...], errno: int) -> list[bytes]:
    return [_load(argument), *(step(_EQUAL, value, len(values) - i) for i, value in enumerate(values)),
            refuse(errno)]


def _not_one_of(argument: int, values: tuple[int, ...], errno: int) -> list[bytes]:
    return [_load(argument), *(part for value in values for part in (step(_EQUAL, value, 0, 1), refuse(errno)))]


def _where(argument: int, value: int, checks: list[bytes]) -> list[bytes]:
    """Those checks where the argument has that value."""
    return [_load(argument), step(_EQUAL, value, 0, len(checks)), *checks]


def _needs(argument: int, bit: int, errno: int) -> list[bytes]:
    return [_load(argument), step(_ANY_BIT, bit, 1, 0), refuse(errno)]


def lacks(argument: int, bits: int, errno: int) -> list[bytes]:
    return [_load(argument), step(_ANY_BIT, bits, 0, 1), refuse(errno)]


def _within(argument: int, first: int, last: int, errno: int) -> list[bytes]:
    """Four steps: the high word of an address is one of these."""
    return [_load_high(argument), step(_AT_LEAST, first, 0, 1), step(_AT_LEAST, last + 1, 0, 1), refuse(errno)]


def _load_high(argument: int) -> bytes:
    return step(_LOAD, _ARGUMENTS + 8 * argument + 4)


def _load(argument: int) -> bytes:
    """The low word of an argument: what is checked here is an int or has no meaning in the high word."""
    return step(_LOAD, _ARGUMENTS + 8 * argument)


def refuse(errno: int) -> bytes:
    """0 is a success at which nothing is done."""
    return step(_RETURN, _REFUSE | errno)


def step(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction: struct sock_filter."""
    return struct.pack("=HBBI", code, if_true, if_false, k)
