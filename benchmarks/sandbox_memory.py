"""The most memory that programs can take in the sandbox, the kernel's memory for them too.

Each program takes all it can get of one kind for some seconds and holds it. What it took is what the control group of
this process counts (version 1), or the fall of the machine's MemAvailable, which others move, too.
"""

import dataclasses
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cli import command
from cli.checks import check_positive

DESCRIPTION = """Run programs that take all the memory they can get in the sandbox, and print the most each had.

  python -m benchmarks.sandbox_memory --before path/to/an/older/checkout"""

START = """
import ctypes, fcntl, mmap, os, socket, struct, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_ssize_t
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
held = []
def again(make, most=10 ** 9):
    try:
        for i in range(most): held.append(make(i))
    except (OSError, RuntimeError, MemoryError): pass
def checked(result):
    if result == -1: raise OSError(ctypes.get_errno(), "")
    return result
def fill(write, data=bytes(65536)):
    try:
        while True: write(data)
    except OSError: pass
"""
KINDS = {
    "nothing": "",
    "objects": "again(lambda i: bytearray(1 << 20))",
    "files' bytes": "again(lambda i: open(str(i), 'wb').write(bytes(1 << 20)))",
    "empty files": "again(lambda i: open(str(i), 'w').close())",
    "files with long names": "again(lambda i: open(f'{i:0250}', 'w').close())",
    "folders": "again(lambda i: os.mkdir(str(i)))",
    "symbolic links": "again(lambda i: os.symlink('x' * 120, str(i)))",
    "semaphores": "again(lambda i: checked(libc.semget(0, 32000, 0o1600)), 1000)",
    "message queues": "def queue(i):\n    q = checked(libc.msgget(0, 0o1600))\n"
                      "    while libc.msgsnd(q, struct.pack('l', 1) + bytes(8000), 8000, 0o4000) == 0: pass\n"
                      "again(queue, 60000)",
    "pipes": "def pipe(i):\n    a, b = os.pipe()\n    os.set_blocking(b, False)\n"
             "    try: fcntl.fcntl(b, 1031, 1 << 20)\n    except OSError: pass\n"
             "    fill(lambda data: os.write(b, data))\nagain(pipe)",
    "huge pages in pipes": "libc.vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]\n"
                           "pipes = []\ntry:\n    while True: pipes.append(os.pipe())\nexcept OSError: pass\n"
                           "for n in range(400):\n"
                           "    m = libc.mmap(None, 4 << 20, 3, 0x22, -1, 0)\n"
                           "    at = (m + (2 << 20) - 1) & -(2 << 20)\n"
                           "    libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(2 << 20), 14)\n"
                           "    ctypes.memset(at, 1, 4096)\n    piece = (ctypes.c_size_t * 2)(at, 4096)\n"
                           "    libc.vmsplice(pipes[n // 14 % len(pipes)][1], piece, 1, 2)\n"
                           "    libc.munmap(ctypes.c_void_p(m), ctypes.c_size_t(4 << 20))",
    "sockets": "def pair(i):\n    a, b = socket.socketpair()\n    for s in (a, b):\n        s.setblocking(False)\n"
               "        try: s.setsockopt(1, 7, 1 << 30)\n        except OSError: pass\n        fill(s.send)\n"
               "    return a, b\nagain(pair)",
    "sockets in flight": "def bundle(i):\n    a, b = socket.socketpair()\n    for s in (a, b):\n"
                         "        s.setblocking(False)\n        fill(s.send)\n    return a, b\n"
                         "def send(i):\n    x, y = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
                         "    for n in range(8):\n        a, b = bundle(n)\n"
                         "        socket.send_fds(x, [b'x'], [a.fileno(), b.fileno()])\n    return x, y\nagain(send)",
    "threads": "threading.stack_size(32768)\ndef thread(i):\n"
               "    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\nagain(thread)",
    "threads on one stack": "stack = libc.mmap(None, 1 << 16, 3, 0x22, -1, 0)\n"
                            "libc.clone.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int, ctypes.c_void_p]\n"
                            "again(lambda i: checked(libc.clone(libc.pause, stack + 65536, 0x50F00, None)), 60000)",
    "page tables": "def page(i):\n    m = checked(libc.mmap((1 << 30) * (8 + i), 4096, 3, 0x100022, -1, 0))\n"
                   "    ctypes.memset(m, 1, 1)\nagain(page, 60000)",
    "page tables, without addresses": "def page(i):\n    m = checked(libc.mmap(None, 2 << 20, 3, 0x22, -1, 0))\n"
                                      "    ctypes.memset(m, 1, 1)\n"
                                      "    libc.munmap(ctypes.c_void_p(m + 4096), ctypes.c_size_t((2 << 20) - 4096))\n"
                                      "again(page, 60000)",
    "rests of huge pages": "def rest(i):\n    m = checked(libc.mmap(None, 4 << 20, 3, 0x22, -1, 0))\n"
                           "    at = (m + (2 << 20) - 1) & -(2 << 20)\n"
                           "    libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(2 << 20), 14)\n"
                           "    ctypes.memset(at, 1, 4096)\n"
                           "    libc.munmap(ctypes.c_void_p(m), ctypes.c_size_t(at - m))\n"
                           "    libc.munmap(ctypes.c_void_p(at + 4096), ctypes.c_size_t((2 << 20) - 4096))\n"
                           "    libc.munmap(ctypes.c_void_p(at + (2 << 20)), ctypes.c_size_t(m + (2 << 20) - at))\n"
                           "again(rest, 700)",
    "locks of ranges": "f = open('l', 'w')\nfor i in range(10 ** 6): fcntl.lockf(f, 2, 1, 10 ** 15 - 2 * i)",
    "timers": "again(lambda i: checked(libc.timer_create(1, 0, ctypes.create_string_buffer(8))), 10 ** 7)",
    "queued signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [40])\n"
                      "again(lambda i: os.kill(os.getpid(), 40), 10 ** 6)",
    "names that do not exist": "for i in range(10 ** 8): os.path.exists(f'/usr/lib/{i:0240}')",
}
KINDS["all in turn"] = "\n".join(KINDS[kind] for kind in (
    "files' bytes", "empty files", "sockets", "objects"))
WORKER = """
import sys
from rewards.execution.sandbox import Limits, run_python
run_python("pass")
print("ready", flush=True)
run_python(sys.stdin.read(), Limits(seconds=float(sys.argv[1]), memory_mb=int(sys.argv[2])))
"""


@dataclasses.dataclass(frozen=True)
class Config:
    before: str = ""
    """A checkout of Temper to measure beside this one."""
    seconds: float = 5.0
    """A program's time."""
    memory_mb: int = 512
    """The limit of the sandbox."""
    rounds: int = 1
    """The median of so many is printed."""
    kinds: tuple[str, ...] = tuple(KINDS)


def main(config: Config) -> None:
    check_positive(config, "seconds", "memory_mb", "rounds")
    codes = [config.before] * bool(config.before) + [str(Path(__file__).resolve().parents[1])]
    table = Table("kind", "limit MiB", *(["before MiB"] if config.before else []), "now MiB",
                  title=f"most memory, by {counted_by()}")
    for kind in config.kinds:
        peaks = [statistics.median(peak(config, code, kind) for _ in range(config.rounds)) for code in codes]
        table.add_row(kind, str(config.memory_mb), *(f"{most / 2**20:.0f}" for most in peaks))
    Console().print(table)


def peak(config: Config, code: str, kind: str) -> int:
    """The most bytes that were taken while a program of that kind ran in the sandbox of `code`, a checkout."""
    arguments = [str(config.seconds), str(config.memory_mb)]
    with subprocess.Popen([sys.executable, "-c", WORKER, *arguments], cwd=code, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as worker:
        worker.stdout.readline()
        done, before, most = threading.Event(), taken(), [0]
        watcher = threading.Thread(target=lambda: most.extend(taken() - before for _ in ticks(done)))
        watcher.start()
        worker.communicate(START + KINDS[kind] + "\ntime.sleep(99)")
        done.set()
        watcher.join()
    time.sleep(1.0)  # until the kernel has it all back
    return max(most)


def ticks(done: threading.Event) -> Iterator[None]:
    while not done.wait(0.02):
        yield


def taken() -> int:
    """Bytes of memory in use, as far as they can be told apart from what is free."""
    group = own_group()
    if group is not None:
        return int((group / "memory.usage_in_bytes").read_text()) - cached(group)
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return -int(lines["MemAvailable"].split()[0]) * 1024


def own_group() -> Path | None:
    """This process's memory group of version 1, if it has one of its own."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        folder = Path("/sys/fs/cgroup/memory" + path)
        if "memory" in controllers.split(",") and path != "/" and (folder / "memory.usage_in_bytes").exists():
            return folder
    return None


def cached(group: Path) -> int:
    """Bytes of files of disks: `cache` without tmpfs."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(stat["cache"]) - int(stat.get("shmem", 0))


def counted_by() -> str:
    return "MemAvailable" if own_group() is None else "this process's control group"


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
