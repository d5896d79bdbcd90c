"""The system call filter: what it answers to each call, and that ordinary programs do not notice it."""

import os
import signal
import struct

import pytest
from sandboxed import needs_sandbox

from errors import InputError
from rewards.execution.alone import alone_filter
from rewards.execution.sandbox import Limits, run_python
from rewards.execution.seccomp import checks, close_filter, no_processes_filter
from rewards.execution.syscalls import CALLS, MACHINES

EPERM, EINVAL, ENOTTY, ENOSYS, EAFNOSUPPORT = "error 1", "error 22", "error 25", "error 38", "error 97"


def verdict(code, arch, number, *arguments):
    """What the kernel would make of a call: a BPF machine of the five instructions that filters here use."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    at, word = 0, 0
    while True:
        op, if_true, if_false, k = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        if op == 0x06:
            return {0x7FFF0000: "allow", 0x80000000: "kill", 0x00050000: "nothing"}.get(k) or f"error {k & 0xFFFF}"
        if op == 0x20:
            word = struct.unpack_from("=I", data, k)[0]
        else:
            holds = {0x15: word == k, 0x35: word >= k, 0x45: bool(word & k)}[op]
            at += if_true if holds else if_false


def test_filters_exist_for_known_machines_alone():
    assert {len(no_processes_filter(machine)) % 8 for machine in ("x86_64", "aarch64")} == {0}
    assert len(no_processes_filter()) < 4096  # of a pipe that nobody reads yet
    with pytest.raises(InputError, match="riscv64.*--unsafe-code-without-sandbox"):
        no_processes_filter("riscv64")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_calls_that_are_not_on_the_list_do_not_exist(machine):
    code, (arch, column) = no_processes_filter(machine), MACHINES[machine]
    checked = {CALLS[name][column] for name in checks()}
    allowed = {numbers[column] for numbers in CALLS.values()} - checked
    answers = {number: verdict(code, arch, number) for number in range(1024) if number not in checked}
    assert {number for number, answer in answers.items() if answer == "allow"} == allowed - {None}
    assert set(answers.values()) == {"allow", ENOSYS}
    assert verdict(code, arch, 0x40000000) == verdict(code, arch ^ 1, 0) == "kill"


PTHREAD = 0x3D0F00
PROCESS_OF_ITS_OWN, OWN_FILES = signal.SIGCHLD, PTHREAD & ~0x400


@pytest.mark.parametrize(("name", "arguments", "answer"), [
    ("clone", (PTHREAD,), "allow"), ("clone", (PROCESS_OF_ITS_OWN,), EPERM), ("clone", (OWN_FILES,), EPERM),
    ("clone", (0x10000000,), EPERM), ("fork", (), EPERM), ("vfork", (), EPERM),
    *[("socket", (family, 1), EAFNOSUPPORT) for family in range(50)],
    *[("socketpair", (family, 1), EAFNOSUPPORT) for family in range(50) if family != 1],
    ("socketpair", (1, 1 | 0o2004000), "allow"), ("socketpair", (1, 2), EINVAL), ("socketpair", (1, 5), EINVAL),
    *[("fcntl", (0, command), "allow") for command in (2, 3, 4, 1030)],
    *[("fcntl", (0, command), "nothing") for command in (6, 7)],
    *[("fcntl", (0, command), EINVAL) for command in (37, 1024, 1026, 1031, 1033)],
    ("ioctl", (0, 0x5421), "allow"), ("ioctl", (0, 0x5412), ENOTTY), ("ioctl", (0, 0x40086602), ENOTTY),
    ("prctl", (15,), "allow"), ("prctl", (22, 2), "allow"), ("prctl", (35,), EINVAL),
    ("setresuid", (0, 0), EPERM), ("prctl", (0x53564D41,), EINVAL),
    ("prctl", (41, 1), "allow"), ("prctl", (41, 0), EINVAL), ("mount", (0, 0, 0, 38), "allow"),
    *[("mount", (0, 0, 0, flags), EPERM) for flags in (0, 32, 4096, 4096 | 32, 38 | 4096, 1 << 18)],
    ("mremap", (0, 0, 0, 1), "allow"), ("mremap", (0, 0, 0, 3), EINVAL), ("mremap", (0, 0, 0, 5), EINVAL),
    ("close_range", (3, 9, 4), "allow"), ("close_range", (3, 9, 2), EINVAL), ("close_range", (3, 9, 6), EINVAL)])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_some_calls_exist_for_some_arguments(machine, name, arguments, answer):
    arch, column = MACHINES[machine]
    number = CALLS[name][column]
    if number is not None:  # aarch64 has no fork
        assert verdict(no_processes_filter(machine), arch, number, *arguments) == answer
        high = [argument | 1 << 40 for argument in arguments]  # the kernel reads an int of it
        assert verdict(no_processes_filter(machine), arch, number, *high) == answer


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_second_filter_takes_rights_away_and_keeps_mappings_close(machine):
    arch, column = MACHINES[machine]
    here, gib = 0x7F12_3456_7000, 1 << 30
    code = close_filter(range(here - gib, here + gib), machine=machine)

    def answer(name, *arguments, code=code):
        return verdict(code, arch, CALLS[name][column], *arguments)

    assert answer("prctl", 22, 2) == EINVAL
    assert answer("execve") == EPERM
    assert answer("fsync") == answer("fdatasync") == "nothing"
    assert answer("mount", 0, 0, 0, 38) == answer("setresuid", 65534) == answer("capset") == EPERM
    assert answer("prctl", 41, 1) == answer("read") == answer("clone", PTHREAD) == "allow"
    for name in ("mmap", "munmap", "mremap"):
        assert {answer(name, here + offset) for offset in (0, gib, -gib)} == {"allow"}
        assert {answer(name, address) != "allow" for address in (
            4096, 1 << 32, here - 9 * gib, here + 9 * gib, here | 1 << 56)} == {True}
    assert answer("mmap", 0) == "allow"
    assert answer("mremap", here, 0, 0, 2) == answer("munmap", 0) == EINVAL
    assert answer("prctl", 22, 2, code=close_filter(range(here, here), True, machine)) == "allow"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_verifier_may_fork_and_its_child_may_change_nothing(machine):
    arch, column = MACHINES[machine]

    def answers(name, *arguments):
        return [verdict(code, arch, CALLS[name][column], *arguments) for code in (
            no_processes_filter(machine, forks=True), alone_filter(machine))]

    assert answers("clone", PROCESS_OF_ITS_OWN) == ["allow", EPERM]
    assert answers("prctl", 22, 2) == ["allow", EINVAL]
    assert answers("clone", PTHREAD) == answers("read") == answers("openat", 0, 0, os.O_RDONLY) == ["allow", "allow"]
    assert answers("clone", PROCESS_OF_ITS_OWN | 0x10000000) == [EPERM, EPERM]
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT, os.O_RDONLY | os.O_TRUNC):
        assert answers("openat", 0, 0, flags) == ["allow", EPERM]
    for name in ("kill", "mkdirat", "unlinkat", "renameat2", "execve", "prlimit64", "ftruncate", "fchmod"):
        assert answers(name) == ["allow", EPERM]


ORDINARY = {
    "threads": "from concurrent.futures import ThreadPoolExecutor as T\nwith T(8) as t: "
               "r = sum(t.map(abs, range(-9, 9)))",
    "thread": "import threading as t\nx = []\ny = t.Thread(target=x.append, args=(81,))\ny.start()\ny.join()\nr = x[0]",
    "asyncio": "import asyncio as a\nasync def f(): return await a.gather(*[a.sleep(0.01, i) for i in range(9)])\n"
               "r = sum(a.run(f()))",
    "asyncio in a thread": "import asyncio\nasync def f(): return await asyncio.to_thread(sum, range(9))\n"
                           "r = asyncio.run(f())",
    "asyncio's timeout": "import asyncio\nasync def f():\n    try:\n        async with asyncio.timeout(0.01): await "
                         "asyncio.sleep(9)\n    except TimeoutError: return 5\nr = asyncio.run(f())",
    "tempfile": "import tempfile\nwith tempfile.NamedTemporaryFile('w+') as f:\n    f.write('12')\n    f.seek(0)\n"
                "    r = int(f.read())",
    "temporary folder": "import os, shutil, tempfile\nwith tempfile.TemporaryDirectory() as d:\n"
                        "    open(d + '/a', 'w').write('x')\n    shutil.copy2(d + '/a', d + '/b')\n"
                        "    shutil.copytree(d, d + 'c')\n    os.replace(d + '/a', d + '/d')\n    r = os.listdir(d)",
    "pathlib": "from pathlib import Path\np = Path('a/b')\np.mkdir(parents=True)\n(p / 'x').write_text('7')\n"
               "(p / 'y').symlink_to('x')\nr = int((p / 'y').read_text()) + len(list(Path('a').rglob('*')))",
    "sqlite3": "import sqlite3\nd = sqlite3.connect(':memory:')\nd.execute('create table t (x)')\n"
               "d.executemany('insert into t values (?)', [(i,) for i in range(9)])\n"
               "r = d.execute('select sum(x) from t').fetchone()[0]",
    "sqlite3 in a file": "import sqlite3\nd = sqlite3.connect('x.db')\nd.execute('create table t (x)')\n"
                         "d.execute('insert into t values (4)')\nd.commit()\ne = sqlite3.connect('x.db')\n"
                         "r = e.execute('select x from t').fetchone()[0]",
    "decimal": "from decimal import Decimal as D\nr = D(2).sqrt()",
    "zlib": "import zlib, gzip, bz2, lzma\n"
            "r = len(lzma.decompress(lzma.compress(zlib.decompress(zlib.compress(b'x' * 99)))))",
    "zip": "import io, zipfile\nb = io.BytesIO()\nz = zipfile.ZipFile(b, 'w')\nz.writestr('a', 'bc')\nz.close()\n"
           "r = len(zipfile.ZipFile(b).read('a'))",
    "json": "import json\nr = json.loads(json.dumps({'a': [1, 2.5]}))['a'][1]",
    "random": "import random, secrets, uuid\nr = random.randrange(9) + secrets.randbelow(9) + len(str(uuid.uuid4()))",
    "urandom": "import os\nr = len(os.urandom(8)) + len(open('/dev/urandom', 'rb').read(8))",
    "sleep": "import time\ntime.sleep(0.01)\nr = time.monotonic() + time.process_time() + time.time()",
    "dates": "import datetime as d, time, calendar\nr = d.datetime.now().year + time.localtime().tm_year",
    "selectors": "import os, selectors\na, b = os.pipe()\ns = selectors.DefaultSelector()\n"
                 "s.register(a, selectors.EVENT_READ)\nos.write(b, b'x')\nr = len(s.select(1))",
    "select": "import os, select\na, b = os.pipe()\nos.write(b, b'x')\nr = len(select.select([a], [], [], 1)[0])\n"
              "p = select.poll()\np.register(a)\nr += len(p.poll(9))",
    "socketpair": "import socket\na, b = socket.socketpair()\na.settimeout(1)\nb.sendall(b'hello')\nr = len(a.recv(9))",
    "mmap": "import mmap\nm = mmap.mmap(-1, 4096)\nm[0] = 5\nr = m[0]\nm.close()",
    "mmap of a file": "import mmap\nopen('m', 'wb').write(bytes(9000))\nwith open('m', 'r+b') as f:\n"
                      "    with mmap.mmap(f.fileno(), 0) as m: r = len(m)",
    "signals": "import signal, os\nx = []\nsignal.signal(signal.SIGUSR1, lambda *_: x.append(3))\n"
               "os.kill(os.getpid(), signal.SIGUSR1)\nr = x[0]",
    "alarm": "import signal, time\nx = []\nsignal.signal(signal.SIGALRM, lambda *_: x.append(3))\n"
             "signal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(0.1)\nr = x[0]",
    "queues": "import queue, threading as t\nq = queue.Queue()\nt.Thread(target=q.put, args=(6,)).start()\n"
              "r = q.get(timeout=5)",
    "imports": "import ssl, http.client, urllib.request, xml.etree.ElementTree, email, unittest, doctest, ctypes\n"
               "import multiprocessing, logging.handlers, asyncio.subprocess, statistics, csv, hashlib\nr = 1",
    "unittest": "import unittest, io\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(1, 1)\n"
                "t = unittest.defaultTestLoader.loadTestsFromTestCase(T)\n"
                "r = unittest.TextTestRunner(io.StringIO()).run(t).testsRun",
    "platform": "import platform, os, sysconfig\nr = platform.python_version() + str(os.cpu_count()) + os.uname()[2]",
    "terminal": "import shutil, sys\nr = shutil.get_terminal_size().columns + sys.stdout.isatty()",
    "lock of a file": "import fcntl\nf = open('l', 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
                      "fcntl.lockf(f, fcntl.LOCK_EX)\nr = 1",
    "large lists": "x = list(range(10 ** 6))\nfor _ in range(9): x += x[:10 ** 5]\ndel x\nr = len(bytearray(50 << 20))",
    "grows": "x = bytearray()\nfor i in range(300): x += bytes(1 << 16)\nr = len(x)",
    "faulthandler": "import faulthandler, sys\nfaulthandler.enable(sys.stderr)\nr = 1",
    "tracemalloc and gc": "import tracemalloc, gc\ntracemalloc.start()\nr = gc.collect() + 1\ntracemalloc.stop()",
    "disk usage": "import shutil, os\nr = shutil.disk_usage('/tmp').total + os.statvfs('/tmp').f_bsize",
    "resources": "import resource\nr = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + resource.getrlimit(0)[0]",
    "subprocess is refused": "import subprocess\ntry: subprocess.run(['true'])\nexcept OSError: r = 1",
    "multiprocessing is refused": "import multiprocessing as m\np = m.get_context('fork').Process(target=print)\n"
                                  "try: p.start()\nexcept OSError: r = 1",
    "os.system is refused": "import os\ntry: r = os.system('true')\nexcept OSError: r = 1",
    "a connection is refused": "import urllib.request as u\ntry: u.urlopen('http://localhost:1', timeout=1)\n"
                               "except OSError: r = 1",
}
RUN = """
import traceback
for name, program in {programs!r}.items():
    try:
        names = {{}}
        exec(program, names)
        assert names['r'] is not None
        print('fine', name)
    except BaseException:
        print('not', name, repr(traceback.format_exc()))
"""


@needs_sandbox
def test_ordinary_programs_do_what_they_do():
    outcome = run_python(RUN.format(programs=ORDINARY), Limits(seconds=60.0, memory_mb=2048))
    assert outcome.output.splitlines() == [f"fine {name}" for name in ORDINARY]
    assert outcome.status == 0
