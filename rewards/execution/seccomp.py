"""The seccomp filter of the sandbox, as the kernel takes it: no new process, and none of the kernel's back doors.

RLIMIT_NPROC does not hold for root, and a cgroup needs a delegated one: a filter holds for every user. It refuses fork,
vfork and any clone that is not a thread's, with EPERM; clone3, whose flags lie in memory that a filter cannot read, is
said not to exist, so that the C library falls back on clone. Threads stay, as many as the address space has room for.
Format: `struct sock_filter` of linux/filter.h over `struct seccomp_data` of linux/seccomp.h, see seccomp(2).
"""

import platform
import struct

from errors import InputError

_CLONE_THREAD = 0x10000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF: word at k, three jumps, return k
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets into struct seccomp_data; its low word, both machines being little
_X32 = 0x40000000  # numbers from here on are x86_64's second table of the same calls

_MACHINES = {
    "x86_64": (0xC000003E, {
        "clone": 56, "fork": 57, "vfork": 58, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
        "memfd_create": 319, "shmget": 29, "mq_open": 240, "add_key": 248, "request_key": 249, "keyctl": 250,
        "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "kexec_load": 246, "init_module": 175, "finit_module": 313}),
    "aarch64": (0xC00000B7, {
        "clone": 220, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
        "memfd_create": 279, "shmget": 194, "mq_open": 180, "add_key": 217, "request_key": 218, "keyctl": 219,
        "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "kexec_load": 104, "init_module": 105, "finit_module": 273})}
_PROCESSES = ("clone", "fork", "vfork")
_CLONE3 = 435  # numbers from 424 on are the same on both
_NEW_CALLS = {"io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "pidfd_getfd": 438,
              "mount_setattr": 442, "memfd_secret": 447}


def no_processes_filter(machine: str | None = None, forks: bool = False) -> bytes:
    """The filter for `machine` (as platform.machine() names it; None: this one), for bwrap's --seccomp. With `forks`,
    new processes are allowed: of a verifier, whose children the filter of alone.py refuses them to.

    Raises InputError for a machine whose system calls are not known here.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise InputError(f"no system call filter for a {machine} machine (there are {', '.join(_MACHINES)}), so code "
                         f"cannot be sandboxed on it; --unsafe-code-without-sandbox runs it with limits only")
    numbers = _MACHINES[machine][1] | _NEW_CALLS
    refused = [number for name, number in numbers.items() if name not in _PROCESSES]
    return b"".join([*filter_head(machine), *(part for number in refused for part in refuse(number, _EPERM)),
                     *([] if forks else refuse_processes(machine)), step(_RETURN, _ALLOW)])


def filter_head(machine: str) -> list[bytes]:
    """Kills what calls the kernel by another table of numbers (32 bits, x32), which the rest would misread; the number
    of the call is loaded then."""
    return [step(_LOAD, _ARCH), step(_EQUAL, _MACHINES[machine][0], 1, 0), step(_RETURN, _KILL),
            step(_LOAD, _NUMBER), step(_AT_LEAST, _X32, 0, 1), step(_RETURN, _KILL)]


def refuse(number: int, errno: int) -> list[bytes]:
    """Of the loaded number, which stays."""
    return [step(_EQUAL, number, 0, 1), step(_RETURN, _REFUSE | errno)]


def refuse_processes(machine: str) -> list[bytes]:
    """Refuses fork, vfork and a clone without CLONE_THREAD. Overwrites the loaded number, so it comes last."""
    numbers = _MACHINES[machine][1]
    forks = [part for name in ("fork", "vfork") if name in numbers for part in refuse(numbers[name], _EPERM)]
    return [*refuse(_CLONE3, _ENOSYS), *forks, step(_EQUAL, numbers["clone"], 0, 3), step(_LOAD, _FIRST_ARGUMENT),
            step(_ANY_BIT, _CLONE_THREAD, 1, 0), step(_RETURN, _REFUSE | _EPERM)]


def step(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction: struct sock_filter."""
    return struct.pack("=HBBI", code, if_true, if_false, k)
