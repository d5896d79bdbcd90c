"""A control group (version 2) for each sandbox, where one can be had: it counts all the memory that a sandbox takes,
the kernel's for it too, and its processes.

There are two ways to one, looked for once a process: a group that was given to us to divide (a container's own, or one
that systemd delegates, Delegate=yes), and systemd-run, which asks systemd for a scope. Nothing is changed in a group
that is not ours, be we root or not.
"""

import contextlib
import functools
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from rewards.execution.cpus import CGROUPS, groups_of

ROOT = CGROUPS
_CONTROLLERS = {"memory", "pids"}
_BUS = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
"""how systemd-run --user finds the user's systemd"""
_REMOVAL_SECONDS = 5.0
_numbers = itertools.count()


@contextlib.contextmanager
def group(memory: int, processes: int) -> Iterator[tuple[list[str], dict[str, str]]]:
    """What to put before a command, and into its environment, so that it runs in a group of its own: at most so many
    bytes of memory, none of it swapped out, and so many processes and threads. Nothing where there are no groups."""
    parent = found()
    if isinstance(parent, Path):
        folder = _make(parent, memory, processes)
        try:
            yield ["/bin/sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', str(folder)], {}
        finally:
            _remove(folder)
    else:
        yield [*parent, *_properties(memory, processes)] if parent else [], _bus() if parent else {}


@functools.cache
def found() -> Path | tuple[str, ...] | None:
    """The group to make others in, or systemd-run and its options, or None."""
    delegated = _delegated(ROOT)
    if delegated is not None and _divide(delegated) and _can_limit(delegated):
        return delegated
    systemd_run = shutil.which("systemd-run")
    command = (systemd_run or "", *(["--user"] if os.geteuid() else []), "--scope", "--quiet", "--collect")
    return command if systemd_run and _systemd_limits(command) else None


def _delegated(root: Path) -> Path | None:
    """The nearest group that is ours to divide, from this process's own upwards."""
    return next((group for group in groups_of(root) if _is_ours(group, root)), None)


def _is_ours(group: Path, root: Path) -> bool:
    """systemd marks what it delegates; the root of all groups has no type, that of a container has one."""
    with contextlib.suppress(OSError):
        if os.getxattr(group, "user.delegate") == b"1":
            return True
    return group == root and (group / "cgroup.type").exists() and os.access(group / "cgroup.procs", os.W_OK)


def _divide(group: Path) -> bool:
    """Whether groups in it can have limits. A group with processes can have none, so where ours is its only one, that
    goes into a group below."""
    try:
        if set((group / "cgroup.subtree_control").read_text().split()) >= _CONTROLLERS:
            return True
        if (group / "cgroup.procs").read_text().split() != [str(os.getpid())]:
            return False
        below = group / "temper-trainer"
        below.mkdir(exist_ok=True)
        (below / "cgroup.procs").write_text(str(os.getpid()))
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(_CONTROLLERS)))
    except OSError:  # read-only, or without these controllers
        return False
    return True


def _can_limit(parent: Path) -> bool:
    try:
        _remove(_make(parent, 1 << 30, 100))
    except OSError:
        return False
    return True


def _make(parent: Path, memory: int, processes: int) -> Path:
    folder = parent / f"temper-{os.getpid()}-{next(_numbers)}"
    folder.mkdir()
    (folder / "memory.max").write_text(str(memory))
    (folder / "pids.max").write_text(str(processes))
    for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
        if (folder / name).exists():  # there is no swap.max where the kernel has no swap
            (folder / name).write_text(value)
    return folder


def _remove(folder: Path) -> None:
    """With all that is in it, as soon as the kernel has ended that."""
    with contextlib.suppress(OSError):  # Linux before 5.14 has no such file; what is in it is being ended anyway
        (folder / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _properties(memory: int, processes: int) -> list[str]:
    values = {"MemoryMax": memory, "MemorySwapMax": 0, "TasksMax": processes}
    return [*(f"--property={name}={value}" for name, value in values.items()), "--"]


def _bus() -> dict[str, str]:
    return {name: os.environ[name] for name in _BUS if name in os.environ}


def _systemd_limits(command: tuple[str, ...]) -> bool:
    """Whether a limit that systemd is asked for is one of the scope it makes, and open files are left open."""
    reading, writing = os.pipe()
    os.write(writing, b"left open")
    os.close(writing)
    look = f'cat "{ROOT}$(sed -n s/^0:://p /proc/self/cgroup)/memory.max" && cat /proc/self/fd/{reading}'
    try:
        tried = subprocess.run([*command, *_properties(1 << 30, 100), "/bin/sh", "-c", look], pass_fds=[reading],
                               capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20.0, check=False)
    except subprocess.TimeoutExpired:
        return False
    finally:
        os.close(reading)
    return tried.stdout.split("\n") == [str(1 << 30), "left open"]
