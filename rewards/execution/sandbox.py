"""Untrusted Python in a sandbox of bubblewrap, with limits on all that it can use up.

A sandboxed process has namespaces of its own (no network, no other process in sight), no capabilities, an empty
environment, and sees the interpreter and the system's libraries, read-only; it can write to one small folder in
memory, up to a size and a number of files. A seccomp filter keeps it a single process, so limits per process are limits
of the whole, and keeps it from calls that take memory which no limit counts (seccomp.py). It is not root's, even
where the trainer is root, whom no limit on threads would bind (ways.py). When it is over its time, or when the
trainer dies however that happens, the kernel ends all that is inside. Where there are control groups to be had, one for
each sandbox counts its memory, the kernel's too, and its threads (cgroups.py).

What is left: the CPU's and the kernel's own bugs.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from errors import InputError
from rewards.execution import cgroups
from rewards.execution.seccomp import no_processes_filter
from rewards.execution.ways import Way, users, ways

_REPOSITORY = Path(__file__).resolve().parents[2]
_INSIDE = "/temper"
"""where the files that run inside lie in the sandbox"""
_CODE, _VERIFIERS = ("rewards/execution", "errors.py"), ("rewards", "errors.py")
"""what of ours can be read inside: by code, and by what forks"""
_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64")
_DEVICES = ("/dev/null", "/dev/urandom")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
"""the order of a set of strings decides some answers: the same completion gets the same reward in every run"""
_START = "import sys, importlib; sys.path.insert(0, sys.argv[1]); importlib.import_module(sys.argv[2]).main()"
_BWRAP_PROCESSES = 4
logger = logging.getLogger(__name__)
_OVERRIDE = "or run code without one, at your own risk, by --unsafe-code-without-sandbox"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one sandboxed process may use."""

    seconds: float = 6.0
    """of wall time; of CPU time a second more. Infinite: of neither"""
    memory_mb: int = 512
    """address space, MiB"""
    disk_mb: int = 16
    """files in its folder, together and each, MiB of memory"""
    files: int = 1024
    """in its folder, with folders and links"""
    threads: int = 256
    open_files: int = 64
    output_bytes: int = 65536
    """of standard output and error together; it is ended beyond"""

    def resources(self) -> dict[str, int]:
        """Names of the module `resource` -> limit."""
        cpu = {"RLIMIT_CPU": math.ceil(self.seconds) + 1} if self.seconds < math.inf else {}
        return cpu | {"RLIMIT_AS": self.memory_mb * 2**20, "RLIMIT_FSIZE": self.disk_mb * 2**20,
                      "RLIMIT_NOFILE": self.open_files, "RLIMIT_CORE": 0, "RLIMIT_SIGPENDING": 256}


@dataclasses.dataclass(frozen=True)
class View:
    """What one sandboxed process may do that others may not."""

    readable: tuple[str, ...] = ()
    """folders that it can read, besides the interpreter's and the system's libraries"""
    forks: bool = False


VIEW = View()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a program did."""

    output: str
    """standard output and error"""
    status: int | None
    """exit status, 128 + N for signal N; None where it was ended for its time or output"""


def run_python(program: str, limits: Limits | None = None, unsafe: bool = False) -> Outcome:
    """Runs the source text `program` as a script, in the sandbox; with unsafe=True under its limits only.

    Raises InputError where there is no sandbox.
    """
    limits = limits or Limits()
    with start("inside", {"program": program}, limits, unsafe=unsafe, stdout=subprocess.PIPE,
               stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + limits.seconds
        output = read(process.stdout, deadline, limits.output_bytes + 1)
        status = wait(process, deadline) if len(output) <= limits.output_bytes else None
    return Outcome(output[:limits.output_bytes].decode(errors="replace"), status)


@contextlib.contextmanager
def start(module: str, job: dict[str, Any], limits: Limits, *, unsafe: bool = False, descriptors: Sequence[int] = (),
          stdout: Any = subprocess.DEVNULL, stderr: Any = subprocess.DEVNULL, readable: Sequence[str] = (),
          forks: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `main` of a module of this folder in a sandbox, its job on standard input; on leaving, all that is in it is
    ended.

    `descriptors` are open files that it gets under the same numbers, `readable` further folders that it can read, under
    their own names; with `forks` it may start processes. Raises InputError where there is no sandbox.
    """
    if not unsafe:
        check_sandbox()
    job = job | {"limits": limits.resources()}
    streams = {"stdout": stdout, "stderr": stderr}
    with contextlib.ExitStack() as stack:
        if unsafe:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="temper-code-"))
            process = _launch(_python(module, str(_REPOSITORY)), job, descriptors, cwd=folder, **streams)
        else:
            view = View(tuple(readable), forks)
            limited, variables = stack.enter_context(cgroups.group(
                (limits.memory_mb + limits.disk_mb) * 2**20, limits.threads + _BWRAP_PROCESSES))
            process = _launch_in_sandbox(_found(), module, job, limits, view, descriptors, limited,
                                         env=_ENVIRONMENT | variables, **streams)
        try:
            yield process
        finally:
            _end(process)


def _launch_in_sandbox(way: Way, module: str, job: dict[str, Any], limits: Limits, view: View,
                       descriptors: Sequence[int], limited: Sequence[str] = (),
                       **settings: Any) -> subprocess.Popen[bytes]:
    """`limited` is what stands before the command to run it in a control group."""
    readable = (str(_REPOSITORY), sys.base_prefix, *view.readable)
    job = job | {"sandbox": way.job(limits.files, limits.threads, readable) | {
        "room": _room(limits), "forks": view.forks}}
    with _seccomp_file(view.forks) as seccomp, users(way) as (options, ends, map_users):
        command = [*limited, *sandbox_command(limits, seccomp, view), *way.options(), *options,
                   *_python(module, _INSIDE)]
        process = _launch(command, job, [*descriptors, seccomp, *ends], **settings)
        try:
            map_users()
        except OSError:  # we may not: it would run on with users that nobody knows
            _end(process)
            raise
    return process


def _room(limits: Limits) -> int | None:
    """Bytes of addresses, to either side, that all mappings have place in."""
    return 2 * limits.memory_mb * 2**20


def _launch(command: list[str], job: dict[str, Any], descriptors: Sequence[int],
            **settings: Any) -> subprocess.Popen[bytes]:
    with tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(job).encode())
        stdin.seek(0)
        return subprocess.Popen(command, pass_fds=descriptors, stdin=stdin, start_new_session=True,
                                **{"env": _ENVIRONMENT} | settings)


def _python(module: str, root: str) -> list[str]:
    """-I would also ignore PYTHONHASHSEED; what else it keeps out is no part of an environment that is empty."""
    return [_interpreter(), "-s", "-P", "-S", "-c", _START, root, f"rewards.execution.{module}"]


def _interpreter() -> str:
    """The interpreter itself, where this one is a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


@contextlib.contextmanager
def _seccomp_file(forks: bool = False) -> Iterator[int]:
    """A pipe with the filter in it; it is far smaller than what a pipe holds."""
    reading, writing = os.pipe()
    os.write(writing, no_processes_filter(forks=forks))
    os.close(writing)
    try:
        yield reading
    finally:
        os.close(reading)


def sandbox_command(limits: Limits, seccomp: int, view: View = VIEW) -> list[str]:
    """bwrap with all its options, up to the command to run; `seccomp` is a file descriptor with the filter."""
    return [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session",
            "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--clearenv",
            *(word for name, value in _ENVIRONMENT.items() for word in ("--setenv", name, value)),
            "--perms", "0777", "--size", str(limits.disk_mb * 2**20), "--tmpfs", "/tmp", *_mounts(view),
            "--chdir", "/tmp", "--remount-ro", "/", "--seccomp", str(seccomp)]


def _mounts(view: View) -> list[str]:
    """Options for what can be seen inside. No /proc: what lies there about the kernel belongs to root, as we may.

    Folders above are made first: bwrap would make them the trainer's alone.
    """
    libraries = [["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
                 for path in _LIBRARIES if os.path.exists(path)]
    devices = [["--dev-bind", path, path] for path in _DEVICES]
    prefix = [["--ro-bind", path, path] for path in {sys.base_prefix, sys.base_exec_prefix}]
    ours = [["--ro-bind", str(_REPOSITORY / name), f"{_INSIDE}/{name}"]
            for name in (_VERIFIERS if view.forks else _CODE)]
    readable = [["--ro-bind", path, path] for path in view.readable]
    mounts = [*prefix, *libraries, *devices, *ours, *readable]
    folders = {str(folder) for _, _, path in mounts for folder in Path(path).parents} - {"/", "/tmp"}
    return [word for option in (*(["--dir", folder] for folder in sorted(folders)), *mounts) for word in option]


def wait(process: subprocess.Popen[bytes], deadline: float) -> int | None:
    """The exit status, 128 + N for signal N; None when it is still running at `deadline` (of time.monotonic)."""
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    return 128 - status if status < 0 else status


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and its group. bwrap's end is the end of the namespace's first process, and so of all others."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def read(file: IO[bytes], deadline: float, size: int, enough: Callable[[bytes], bool] = lambda data: False) -> bytes:
    """Reads up to the end of the file, `deadline` (of time.monotonic), `size` bytes, or until there is `enough`."""
    data = b""
    while len(data) < size and not enough(data):
        ready, _, _ = select.select([file], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(file.fileno(), min(65536, size - len(data))) if ready else b""
        if not part:
            break
        data += part
    return data


def check_sandbox() -> None:
    """Raises InputError, one line with what to do, where bubblewrap is missing or cannot make a sandbox."""
    reason = _missing()
    if reason:
        raise InputError(f"code is run in a sandbox, and {reason}, {_OVERRIDE}")


def has_sandbox() -> bool:
    """Whether bubblewrap can make one here."""
    return _missing() is None


def _missing() -> str | None:
    """Why there is no sandbox; None where there is one."""
    return None if isinstance(_found(), Way) else _found()


@functools.cache
def _found() -> Way | str:
    """The best way to make a sandbox here, or why there is none. Tried once a process."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is missing (no bwrap on PATH): install it (apt install bubblewrap, dnf install bubblewrap)"
    for way in ways():
        message = _complaint(way)
        if message is None:
            if way.missing() and cgroups.found() is None:
                logger.warning("the sandbox cannot limit %s here (docs/online.md, Code)", way.missing())
            return way
    return (f"bubblewrap cannot make one here ({message}): allow user namespaces (sysctl "
            f"kernel.unprivileged_userns_clone=1; docker run --security-opt seccomp=unconfined --security-opt "
            f"apparmor=unconfined, or --privileged)")


def _complaint(way: Way) -> str | None:
    """What was said where nothing could be run that way."""
    try:
        process = _launch_in_sandbox(way, "inside", {"program": "", "limits": {}}, Limits(), VIEW, (),
                                     stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except OSError as error:
        return str(error)
    with process:
        message = process.stderr.read().decode(errors="replace").strip()
    return None if process.returncode == 0 else (message.splitlines() or [f"status {process.returncode}"])[-1]
