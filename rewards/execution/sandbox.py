"""Untrusted Python in a sandbox of bubblewrap, with limits on all that it can use up.

A sandboxed process has namespaces of its own (no network, no other process in sight), no capabilities, an empty
environment, and sees the interpreter and the system's libraries, read-only; it can write to one small folder in
memory. A seccomp filter keeps it a single process, so limits per process are limits of the whole. When it is over its
time, or when the trainer dies however that happens, the kernel ends all that is inside.

What is left: the CPU's and the kernel's own bugs, and as many threads as the address space has room for.
"""

import contextlib
import dataclasses
import functools
import json
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
from rewards.execution.seccomp import no_processes_filter

_REPOSITORY = Path(__file__).resolve().parents[2]
_INSIDE = "/temper"
"""where the files that run inside lie in the sandbox"""
_CODE, _VERIFIERS = ("rewards/execution",), ("rewards", "errors.py")
"""what of ours can be read inside: by code, and by what forks"""
_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64")
_DEVICES = ("/dev/null", "/dev/urandom")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
"""the order of a set of strings decides some answers: the same completion gets the same reward in every run"""
_START = "import sys, importlib; sys.path.insert(0, sys.argv[1]); importlib.import_module(sys.argv[2]).main()"
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
    open_files: int = 64
    output_bytes: int = 65536
    """of standard output and error together; it is ended beyond"""

    def resources(self) -> dict[str, int]:
        """Names of the module `resource` -> limit."""
        cpu = {"RLIMIT_CPU": math.ceil(self.seconds) + 1} if self.seconds < math.inf else {}
        return cpu | {"RLIMIT_AS": self.memory_mb * 2**20,
                "RLIMIT_FSIZE": self.disk_mb * 2**20, "RLIMIT_NOFILE": self.open_files, "RLIMIT_CORE": 0}


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
    with contextlib.ExitStack() as stack:
        stdin = stack.enter_context(tempfile.TemporaryFile())
        stdin.write(json.dumps(job | {"limits": limits.resources()}).encode())
        stdin.seek(0)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="temper-code-")) if unsafe else None
        view = View(tuple(readable), forks)
        process = _launch(module, limits, view, descriptors, folder, stdin=stdin, stdout=stdout, stderr=stderr)
        try:
            yield process
        finally:
            _end(process)


def _launch(module: str, limits: Limits, view: View, descriptors: Sequence[int], folder: str | None,
            **streams: Any) -> subprocess.Popen[bytes]:
    """Starts in `folder` without a sandbox, or in a sandbox where it is None."""
    settings = {"env": _ENVIRONMENT, "start_new_session": True} | streams
    if folder is not None:
        return subprocess.Popen(_python(module, str(_REPOSITORY)), cwd=folder, pass_fds=descriptors, **settings)
    with _seccomp_file(view.forks) as seccomp:
        command = sandbox_command(limits, seccomp, view) + _python(module, _INSIDE)
        return subprocess.Popen(command, pass_fds=[*descriptors, seccomp], **settings)


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
            "--size", str(limits.disk_mb * 2**20), "--tmpfs", "/tmp", *_mounts(view), "--chdir", "/tmp",
            "--remount-ro", "/", "--seccomp", str(seccomp)]


def _mounts(view: View) -> list[str]:
    """Options for what can be seen inside. No /proc: what lies there about the kernel belongs to root, as we may."""
    libraries = [["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
                 for path in _LIBRARIES if os.path.exists(path)]
    devices = [["--dev-bind", path, path] for path in _DEVICES]
    prefix = [["--ro-bind", path, path] for path in {sys.base_prefix, sys.base_exec_prefix}]
    ours = [["--ro-bind", str(_REPOSITORY / name), f"{_INSIDE}/{name}"]
            for name in (_VERIFIERS if view.forks else _CODE)]
    readable = [["--ro-bind", path, path] for path in view.readable]
    return [word for mount in (*prefix, *libraries, *devices, *ours, *readable) for word in mount]


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


@functools.cache
def _missing() -> str | None:
    """Why there is no sandbox; None where there is one. Tried once a process."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is missing (no bwrap on PATH): install it (apt install bubblewrap, dnf install bubblewrap)"
    with _seccomp_file() as seccomp:
        tried = subprocess.run([*sandbox_command(Limits(), seccomp), _interpreter(), "-I", "-S", "-c", "pass"],
                               pass_fds=[seccomp], capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return None
    message = (tried.stderr.strip().splitlines() or [f"status {tried.returncode}"])[-1]
    return (f"bubblewrap cannot make one here ({message}): allow user namespaces (sysctl "
            f"kernel.unprivileged_userns_clone=1; docker run --security-opt seccomp=unconfined --security-opt "
            f"apparmor=unconfined, or --privileged)")
