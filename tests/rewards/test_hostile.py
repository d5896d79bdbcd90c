"""Hostile programs: what each tries, it must not manage, and nothing may be left of it.

A program manages what it tries when it comes to its end, or when its `managed` is true then. Most do no harm to each
other and are run one after the other in one sandbox; those that never end have one each.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sandboxed import REQUIRED, needs_sandbox

from rewards.execution import sandbox
from rewards.execution.sandbox import Limits, run_python
from rewards.execution.seccomp import _ALLOW, _RETURN, step
from rewards.execution.ways import Way

pytestmark = needs_sandbox
PROJECT = Path(__file__).resolve().parents[2]

START = """
import ctypes, errno, fcntl, io, mmap, os, resource, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_ssize_t
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
ARM = os.uname().machine == "aarch64"
def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result == -1: raise OSError(ctypes.get_errno(), name)
    return result
def system(x86, arm, *arguments):
    "By number, where the C library has no function."
    return call("syscall", arm if ARM else x86, *arguments)
def new(number, *arguments):
    return call("syscall", number, *arguments)
def count(make, most):
    "How often something can be made, and whether that is more than it should be."
    made = []
    try:
        while len(made) <= most: made.append(make(len(made)))
    except (OSError, RuntimeError, MemoryError): pass
    return len(made) > most
def fill(write):
    "Bytes that can be written before there is no room."
    total = 0
    try:
        while total < 1 << 30: total += write(bytes(65536))
    except (OSError, MemoryError): pass
    return total
def clean():
    import shutil
    os.closerange(3, 64)
    for entry in os.scandir("/tmp"):
        shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
"""
FAMILIES = {"unix": 1, "inet": 2, "ax25": 3, "inet6": 10, "key": 15, "netlink": 16, "packet": 17, "rds": 21, "can": 29,
            "tipc": 30, "bluetooth": 31, "alg": 38, "nfc": 39, "vsock": 40, "kcm": 41, "qipcrtr": 42, "smc": 43,
            "xdp": 44}
SOCKETS = {
    **{f"socket {name}": f"socket.socket({number}, socket.SOCK_DGRAM)" for name, number in FAMILIES.items()},
    **{f"raw socket {name}": f"socket.socket({FAMILIES[name]}, socket.SOCK_RAW)" for name in (
        "inet", "packet", "netlink")},
    "pair of datagrams": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "pair of packets": "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
    "pair of another family": "socket.socketpair(30, socket.SOCK_STREAM)",
    "server": "socket.create_server(('127.0.0.1', 0))",
    "connection": "socket.create_connection(('127.0.0.1', 80), 1)",
    "name server": "socket.getaddrinfo('example.com', 80)",
    "web page": "import urllib.request\nurllib.request.urlopen('http://1.1.1.1', timeout=1)",
    "descriptors in flight": "a, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0])",
    "buffers as large as it likes": "a, b = socket.socketpair()\n"
                                    "a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)",
    "a program in a socket": "a, b = socket.socketpair()\na.setsockopt(socket.SOL_SOCKET, 26, bytes(16))",
}
KERNEL_MEMORY = {
    "semaphores": "call('semget', 0, 32000, 0o1600)",
    "undone semaphores": "call('semop', 0, bytes(6), 1)",
    "message queue": "call('msgget', 0, 0o1600)",
    "POSIX message queue": "libc.mq_open.restype = ctypes.c_int\n"
                    "call('mq_open', b'/q', os.O_CREAT | os.O_RDWR, 0o600, 0)",
    "shared memory": "call('shmget', 0, 1 << 20, 0o1600)",
    "shared memory by name": "call('shm_open', b'/x', os.O_CREAT | os.O_RDWR, 0o600)",
    "shared memory of multiprocessing": "from multiprocessing import shared_memory as s\n"
                    "s.SharedMemory(create=True, size=9)",
    "semaphore of multiprocessing": "import multiprocessing\nmultiprocessing.Lock()",
    "memory in files": "os.memfd_create('x')",
    "secret memory": "new(447, 0)",
    "inotify": "call('inotify_init1', 0)",
    "fanotify": "system(300, 262, 0, 0)",
    "signals as files": "call('signalfd', -1, bytes(128), 0)",
    "timers as files": "system(283, 85, 1, 0)",
    "timers": "call('timer_create', 1, 0, bytes(8))",
    "asynchronous input": "system(206, 0, 100, ctypes.byref(ctypes.c_ulong()))",
    "io_uring": "new(425, 8, bytes(120))",
    "io_uring's further calls": "new(427, 0, 0, 0, 0)",
    "faults of pages": "system(323, 282, 1)",
    "performance counters": "system(298, 241, bytes(128), 0, -1, -1, 0)",
    "bpf": "system(321, 280, 0, bytes(128), 128)",
    "rules of landlock": "new(444, 0, 0, 1)",
    "further filters": "call('prctl', 22, 2, bytes(16), 0, 0)",
    "further filters by seccomp": "system(317, 277, 1, 0, bytes(16))",
    "keys": "system(248, 217, b'user', b'k', b'v', 1, -3)",
    "keyrings": "system(250, 219, 1, b'ring')",
    "keys of others": "system(249, 218, b'user', b'k', 0, -3)",
    "queued signals": "system(129, 138, os.getpid(), 28, struct.pack('iii', 28, 0, -1).ljust(128, b'x'))",
    "larger pipes": "a, b = os.pipe()\nfcntl.fcntl(a, 1031, 1 << 20)",
    "pages of memory in pipes": "a, b = os.pipe()\nsystem(278, 75, b, bytes(16), 0, 0)",
    "pages of files in pipes": "a, b = os.pipe()\nf = open(os.__file__)\nos.splice(f.fileno(), b, 4096, 0)",
    "pages of pipes in pipes": "a, b = os.pipe()\nc, d = os.pipe()\nsystem(276, 77, a, d, 1, 0)",
    "sendfile": "a, b = os.pipe()\nos.sendfile(b, open(os.__file__).fileno(), 0, 4096)",
    "copies by the kernel": "f = open('/tmp/c', 'w+b')\nos.copy_file_range(f.fileno(), f.fileno(), 1)",
    "leases": "fcntl.fcntl(open('/tmp/l', 'w'), 1024, 1)",
    "notes of folders": "fcntl.fcntl(os.open('/tmp', 0), 1026, 2)",
    "locks of descriptions": "fcntl.fcntl(open('/tmp/l', 'w'), 37, struct.pack('hhqqixxxx', 1, 0, 0, 1, 0))",
    "signals of files": "fcntl.fcntl(0, 10, 9)",
    "memory that stays": "call('mlockall', 3)",
    "pages that stay": "call('mlock', ctypes.create_string_buffer(9), 9)",
    "mappings far apart": "call('mremap', 0, 4096, 4096, 3, 1 << 40)",
    "pages far apart": "call('mmap', 1 << 40, 4096, 3, 0x22 | 0x100000, -1, 0)",
    "pages elsewhere": "system(237, 235, 0, 0, 0, 0, 0, 0)",
    "huge pages again": "call('prctl', 41, 0, 0, 0, 0)",
    "names of memory": "call('prctl', 0x53564D41, 0, 0, 4096, b'x')",
    "attributes of files": "open('/tmp/x', 'w')\nos.setxattr('/tmp/x', 'user.a', bytes(60000))",
    "handles of files": "system(303, 264, -100, b'/tmp', bytes(136), bytes(8), 0)",
}
PROCESSES = {
    "fork": "if os.fork() == 0: os._exit(0)",
    "forkpty": "if os.forkpty()[0] == 0: os._exit(0)",
    "vfork": "if ARM: raise OSError\nnew(58)",
    "clone": "if system(56, 220, 17, 0, 0, 0, 0) == 0: os._exit(0)",
    "clone3": "arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)\nif new(435, arguments, 88) == 0: os._exit(0)",
    "thread with files of its own": "system(56, 220, 0x10900, 0, 0, 0, 0)",
    "user namespace by clone": "if system(56, 220, 0x10000011, 0, 0, 0, 0) == 0: os._exit(0)",
    "subprocess": "import subprocess\nsubprocess.run([sys.executable, '-c', 'pass'])",
    "spawn": "os.posix_spawn(sys.executable, ['x', '-c', 'pass'], {})",
    "shell": "managed = os.system('true') == 0",
    "popen": "managed = os.popen('echo 1').read() == '1\\n'",
    "multiprocessing": "import multiprocessing as m\nm.get_context('fork').Process(target=int).start()",
    "pool of processes": "from concurrent.futures import ProcessPoolExecutor as P\nP(1).submit(int).result(2)",
    "files of its own": "call('unshare', 0x400)",
    **{f"{name} namespace": f"call('unshare', {flag})" for name, flag in {
        "user": 0x10000000, "mount": 0x20000, "network": 0x40000000, "process": 0x20000000, "time": 0x80}.items()},
    "another's namespace": "call('setns', 0, 0)",
    "files of its own by closing": "new(436, 60, 63, 2)",
    "ptrace of its parent": "call('ptrace', 16, 1, 0, 0)",
    "ptrace of itself": "call('ptrace', 0, 0, 0, 0)",
    "memory of its parent": "call('process_vm_readv', 1, bytes(16), 1, bytes(16), 1, 0)",
    "memory into its parent": "call('process_vm_writev', 1, bytes(16), 1, bytes(16), 1, 0)",
    "handle of its parent": "os.pidfd_open(1)",
    "descriptor of its parent": "new(438, 0, 0, 0)",
    "signal by handle": "new(424, 0, 9, 0, 0)",
    "comparison with its parent": "system(312, 272, os.getpid(), 1, 0, 0, 0)",
    "end of its parent": "os.kill(1, 9)\ntime.sleep(0.05)\nmanaged = False",
    "end of all": "os.kill(-1, 15)",
    "end of the trainer": "os.kill(TRAINER, 0)",
    "end of the trainer's group": "os.killpg(TRAINER, 9)",
    "priority": "os.nice(-5)",
    "priority of all": "os.setpriority(os.PRIO_USER, 0, -20)",
    "real time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "deadlines": "system(314, 274, 0, bytes(48), 0)",
    "all cores": "os.sched_setaffinity(0, range(os.cpu_count()))",
    "priority of input": "system(251, 30, 1, 0, 0)",
    "reaper": "call('prctl', 36, 1, 0, 0, 0)",
    "traced by all": "call('prctl', 0x59616D61, -1, 0, 0, 0)",
    "another executable": "call('prctl', 35, 13, 0, 0, 0)",
    "another personality": "call('personality', 0x40000)",
}
RIGHTS = {
    "root": "os.setuid(0)", "root's group": "os.setgid(0)", "groups": "os.setgroups([0])",
    "the trainer's user": "os.setresuid(os.geteuid(), -1, -1)\nmanaged = os.getuid() != 65534",
    "root for files": "managed = libc.setfsuid(0) != -1",
    "capabilities": "header = (ctypes.c_uint32 * 2)(0x20080522, 0)\n"
                    "call('capset', header, (ctypes.c_uint32 * 6)(*[-1] * 6))",
    "ambient capabilities": "call('prctl', 47, 2, 21, 0, 0)",
    "capabilities kept": "call('prctl', 8, 1, 0, 0, 0)",
    **{f"limit on {name}": f"_, most = resource.getrlimit(resource.RLIMIT_{name})\n"
                           f"resource.setrlimit(resource.RLIMIT_{name}, (most + 1, most + 1))"
       for name in ("AS", "CPU", "FSIZE", "NOFILE", "CORE", "SIGPENDING")},
    "no limit": "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, 0)", "time of day": "call('settimeofday', bytes(16), 0)",
    "clock's speed": "call('adjtimex', struct.pack('I', 1).ljust(208, b'\\0'))",
    "host name": "socket.sethostname('x')", "domain name": "call('setdomainname', b'x', 1)",
    "mount": "call('mount', b'x', b'/tmp', b'tmpfs', 0, 0)",
    "bind": "call('mount', b'/usr', b'/tmp', 0, 4096, 0)",
    "writable root": "call('mount', 0, b'/', 0, 32, 0)",
    "more files": "call('mount', b'tmpfs', b'/tmp', 0, 38, b'nr_inodes=999999')",
    "larger folder": "call('mount', b'tmpfs', b'/tmp', 0, 38, b'size=1g')",
    "unmount": "call('umount2', b'/usr/lib', 2)", "another root": "os.chroot('/tmp')",
    "pivot": "system(155, 41, b'/', b'/tmp')", "new mounts": "new(430, b'tmpfs', 0)",
    "trees": "new(428, -100, b'/', 1)",
    "flags of mounts": "new(442, -100, b'/', 0, bytes(32), 32)", "swap": "call('swapon', b'/tmp/x', 0)",
    "device": "os.mknod('/tmp/d', 0o60600, os.makedev(8, 0))", "queue with a name": "os.mkfifo('/tmp/f')",
    "reboot": "system(169, 142, 0xfee1dead, 672274793, 0, 0)", "another kernel": "system(246, 104, 0, 0, 0, 0)",
    "module": "system(175, 105, b'x', 1, b'')", "module of a file": "system(313, 273, 0, b'', 0)",
    "kernel's log": "call('klogctl', 3, ctypes.create_string_buffer(99), 99)",
    "ports": "if ARM: raise OSError\nnew(172, 3)", "segments": "if ARM: raise OSError\nnew(154, 0, bytes(99), 9)",
    "accounts": "call('acct', b'/tmp/x')", "quotas": "system(179, 60, 0, 0, 0, 0)",
    "all disks at once": "system(162, 81)",
    "terminal's input": "fcntl.ioctl(1, 0x5412, b'x')",
    "flags of files": "fcntl.ioctl(open(os.__file__), 0x40086602, bytes(8))",
    "owner": "open('/tmp/o', 'w')\nos.chown('/tmp/o', 1, 1)",
}
FILES = {
    **{f"reads {path}": f"open({path!r}, 'rb').read(1)" for path in (
        "/etc/passwd", "/etc/shadow", "/proc/self/mem", "/proc/1/environ", "/proc/cpuinfo", "/sys/kernel/vmcoreinfo",
        "/dev/mem", "/dev/kmsg", "/dev/tty", "/dev/fuse", "/dev/kvm", "/root/.bashrc", "/run/docker.sock")},
    **{f"writes {path}": f"open({path!r} + '/hostile', 'w')" for path in (
        "/", "/usr", "/usr/lib", "/lib", "/dev", "/dev/shm", "/temper", "/temper/rewards/execution", "/var/tmp")},
    "reads the project": "open('PROJECT/pyproject.toml')", "writes to the project": "open('PROJECT/hostile', 'w')",
    "writes beside the interpreter": "open(os.path.dirname(os.__file__) + '/hostile.py', 'w')",
    "removes of the interpreter": "os.unlink(os.__file__)",
    "renames of the interpreter": "os.rename(os.__file__, '/tmp/x')",
    "changes of the interpreter": "os.chmod(os.__file__, 0o777)", "dates of the interpreter": "os.utime(os.__file__)",
    "link to the interpreter": "os.link(os.__file__, '/tmp/h')",
    "cuts the interpreter": "os.truncate(sys.executable, 0)",
    "maps the interpreter": "f = os.open(os.__file__, os.O_RDWR)",
    "out by a link": "os.symlink('/etc/passwd', '/tmp/s')\nopen('/tmp/s').read()",
    "out by another's root": "os.symlink('/proc/1/root/etc/passwd', '/tmp/r')\nopen('/tmp/r').read()",
    "out by dots": "open('/tmp/../../../../etc/passwd').read()",
    "out by a folder": "fd = os.open('/', os.O_RDONLY)\nos.chroot('/tmp') if 0 else os.fchdir(fd)\n"
                    "open('etc/passwd').read()",
    "out by what is open": "managed = any(os.isatty(fd) or os.path.isdir(f'/dev/fd/{fd}') for fd in range(3))",
    "open files of the trainer": "fds = []\nfor fd in range(3, 64):\n    try: fds.append(os.fstat(fd))\n"
                    "    except OSError: pass\n"
                                 "managed = bool(fds)",
    "secrets": "managed = 'hush' in str(os.environ)",
    "users": "import pwd\npwd.getpwall()[0]\npwd.getpwuid(0)",
    "disks": "managed = any(name.startswith(('sd', 'vd', 'nvme')) for name in os.listdir('/dev'))",
}
AMOUNTS = {
    "bytes": "bytearray(600 << 20)", "text": "'x' * (600 << 20)", "list": "[0] * (100 << 20)",
    "number": "1 << (8 * 600 << 20)", "digits": "int('9' * 5000)", "pages": "mmap.mmap(-1, 600 << 20)",
    "pages of a file": "f = open('/tmp/m', 'w+b')\nf.truncate(600 << 20)\nmmap.mmap(f.fileno(), 600 << 20)",
    "pages bit by bit": "managed = count(lambda i: mmap.mmap(-1, 1 << 20), 512)",
    "memory bit by bit": "managed = count(lambda i: bytearray(1 << 20), 512)",
    "a heap by brk": "libc.sbrk.restype = ctypes.c_ssize_t\ncall('sbrk', ctypes.c_ssize_t(600 << 20))",
    "large file": "open('/tmp/f', 'wb').write(bytes(17 << 20))",
    "long file": "f = open('/tmp/f', 'wb')\nos.truncate('/tmp/f', 1 << 40)",
    "reserved file": "os.posix_fallocate(os.open('/tmp/f', os.O_RDWR | os.O_CREAT), 0, 17 << 20)",
    "several files": "managed = fill(lambda data: open(f'/tmp/{time.monotonic_ns()}', 'wb').write(data)) > 16 << 20",
    "empty files": "managed = count(lambda i: open(f'/tmp/{i}', 'w').close(), 1024)",
    "long names": "managed = count(lambda i: open(f'/tmp/{i:0250}', 'w').close(), 1024)",
    "folders": "managed = count(lambda i: os.mkdir(f'/tmp/{i}'), 1024)",
    "deep folders": "def deep(i):\n    os.mkdir('d')\n    os.chdir('d')\ntry: managed = count(deep, 1024)\n"
                    "finally: os.chdir('/tmp')",
    "links": "managed = count(lambda i: os.symlink('x' * 100, f'/tmp/{i}'), 1024)",
    "long links": "managed = count(lambda i: os.symlink('x' * 4000, f'/tmp/{i}'), 1024)",
    "hard links": "open('/tmp/h', 'w')\nmanaged = count(lambda i: os.link('/tmp/h', f'/tmp/{i}'), 1024)",
    "files without a name": "managed = count(lambda i: os.open('/tmp', os.O_TMPFILE | os.O_RDWR), 64)",
    "open files": "managed = count(lambda i: open('/dev/null'), 64)",
    "pipes": "managed = count(lambda i: os.pipe(), 32)",
    "full pipes": "def pipe(i):\n    a, b = os.pipe()\n    os.set_blocking(b, False)\n"
                  "    return fill(lambda data: os.write(b, data))\n"
                  "managed = count(pipe, 32)",
    "full sockets": "total = []\ndef pair(i):\n    a, b = socket.socketpair()\n    made.append((a, b))\n"
                    "    a.setblocking(False)\n"
                    "    total.append(fill(a.send))\nmade = []\ncount(pair, 64)\nmanaged = sum(total) > 32 << 20\n"
                    "for a, b in made: a.close(), b.close()",
    "epolls": "import select\nmanaged = count(lambda i: select.epoll(), 64)",
    "events": "managed = count(lambda i: os.eventfd(0), 64)",
    "threads": "done = threading.Event()\ndef thread(i):\n    t = threading.Thread(target=done.wait, daemon=True)\n"
               "    t.start()\n"
               "    return t\nthreading.stack_size(65536)\nmanaged = count(thread, 256)\ndone.set()\ntime.sleep(0.3)",
    "JSON": "import json\njson.loads('[' * 10 ** 6)", "parentheses": "compile('(' * 10 ** 5, 'x', 'eval')",
    "recursion": "def f(): return f()\nf()", "comparisons": "x = []\nfor i in range(10 ** 5): x = [x]\nx == x[0]",
    "XML": "import xml.etree.ElementTree as e\n"
           "e.fromstring('<!DOCTYPE a [<!ENTITY b \"' + 'x' * 9999 + '\">' + ''.join("
           "f'<!ENTITY c{i} \"{f\"&c{i - 1};\" * 99 if i else \"&b;\" * 99}\">' for i in range(9)) + ']><a>&c8;</a>')",
    "bomb of zlib": "import zlib\npacker = zlib.compressobj(9, wbits=-15)\n"
                    "part = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)\n"
                    "zlib.decompressobj(-15).decompress(part * 600)",
    "pickle": "import pickle\npickle.loads(b'\\x96' + (1 << 40).to_bytes(8, 'little'))",
    "format": "'{:>999999999}'.format(1)", "percent": "'%*d' % (999999999, 1)",
    "bytes of struct": "struct.pack('999999999s', b'')", "array": "import array\narray.array('d', [0]) * (100 << 20)",
    "decimal": "import decimal\ndecimal.getcontext().prec = 999999999\ndecimal.Decimal(1) / 3",
}
ALONE = {  # nobody has memory after it
    "rests of mappings": "def rest(i):\n    m = call('mmap', None, 2 << 20, 3, 0x22, -1, 0)\n"
                         "    ctypes.memset(m, 1, 1)\n"
                         "    call('munmap', ctypes.c_void_p(m + 4096), ctypes.c_size_t((2 << 20) - 4096))\n"
                         "managed = count(rest, 6000)",
}
TOGETHER = SOCKETS | KERNEL_MEMORY | PROCESSES | RIGHTS | FILES | AMOUNTS
UNLIMITED = ("empty files", "long names", "folders", "deep folders", "links", "hard links", "threads")
"""where the machine does not let us have these limits"""
RUN = """
import json, sys
exec(compile({start!r}, "start", "exec"), common := {{}})
for name, program in json.loads({programs!r}).items():
    names = dict(common)
    try:
        exec(compile(program, name, "exec"), names)
        managed, why = names.get("managed", True), ""
    except BaseException as error:
        managed, why = False, type(error).__name__ + ": " + str(error)[:99]
    del names
    common["clean"]()
    print(json.dumps([name, managed, why]), flush=True)
"""

def run_together(programs, **limits):
    """What each managed and what it met, all in one sandbox."""
    filled = {name: program.replace("TRAINER", str(os.getpid())).replace("PROJECT", str(PROJECT))
              for name, program in programs.items()}
    program = RUN.format(start=START, programs=json.dumps(filled))
    outcome = run_python(program, Limits(seconds=120.0, output_bytes=1 << 20, **limits))
    told = [json.loads(line) for line in outcome.output.splitlines() if line.startswith("[")]
    assert len(told) == len(programs), outcome.output[-2000:]
    return {name: (managed, why) for name, managed, why in told}


@pytest.fixture(scope="module")
def outcomes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("API_TOKEN", "hush")
        return run_together(TOGETHER) | run_together(ALONE)


@pytest.mark.parametrize("name", TOGETHER | ALONE)
def test_what_a_program_tries_it_does_not_manage(name, outcomes):
    managed, why = outcomes[name]
    if managed and name in UNLIMITED and sandbox._found().missing() and not REQUIRED:
        pytest.skip(f"the sandbox cannot limit {sandbox._found().missing()} here")
    assert not managed, why


WITHOUT_FILTER = [
    "socket unix", "socket inet", "socket netlink", "pair of datagrams", "pair of packets", "server",
    "descriptors in flight", "buffers as large as it likes", "semaphores", "message queue", "POSIX message queue",
    "shared memory", "memory in files", "inotify", "signals as files", "timers as files", "timers", "queued signals",
    "larger pipes", "pages of memory in pipes", "pages of files in pipes", "leases", "locks of descriptions",
    "signals of files", "huge pages again", "queue with a name", "all disks at once", "fork", "clone", "clone3",
    "user namespace by clone", "files of its own", "files of its own by closing", "handle of its parent", "all cores",
    "reaper", "another personality", "pages far apart", "rests of mappings"]
WITHOUT_LIMITS = ["empty files", "long names", "folders", "links", "hard links", "open files", "events", "threads",
                  "large file", "pipes"]


def test_without_the_filter_they_manage(monkeypatch):
    monkeypatch.setattr(sandbox, "no_processes_filter", lambda **options: step(_RETURN, _ALLOW))
    monkeypatch.setattr(sandbox, "_room", lambda limits: None)
    outcomes = run_together({name: (TOGETHER | ALONE)[name] for name in WITHOUT_FILTER})
    assert {name: why for name, (managed, why) in outcomes.items() if not managed} == {}


def test_without_limits_they_manage(monkeypatch):
    monkeypatch.setattr(sandbox, "_found", lambda: Way(files=False, user=False))
    monkeypatch.setattr(Limits, "resources", lambda self: {"RLIMIT_NOFILE": 1024})
    outcomes = run_together({name: TOGETHER[name] for name in WITHOUT_LIMITS}, disk_mb=64)
    assert {name: why for name, (managed, why) in outcomes.items() if not managed} == {}


ENDLESS = {
    "loop": "while True: pass",
    "loop that swallows all": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "sleep": "import time\ntime.sleep(1e6)",
    "deadlock": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "reads what never comes": "import os\nos.read(os.pipe()[0], 1)",
    "no signal ends it": "import signal\n"
                    "for s in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(s, signal.SIG_IGN)\n"
                         "while True: pass",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "does not exit": "import atexit, time\natexit.register(time.sleep, 1e6)",
    "threads that stay": "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,)).start()",
    "threads that spin": "import threading\ndef f():\n    while True: pass\n"
                         "for _ in range(50): threading.Thread(target=f).start()",
    "threads without end": "import threading, time\nthreading.stack_size(32768)\nwhile True:\n    try:\n"
                           "        threading.Thread(target=time.sleep, args=(99,)).start()\n"
                    "    except Exception: pass",
    "forks without end": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory without end": "x = []\nwhile True:\n    try: x.append(bytearray(1 << 20))\n    except MemoryError: pass",
    "files without end": "i = 0\nwhile True:\n    i += 1\n    try: open(f'/tmp/{i}', 'wb').write(bytes(1 << 16))\n"
                         "    except OSError: pass",
    "expression": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    "power": "9 ** 9 ** 9", "power with a rest": "pow(3, 10 ** 10 ** 6, 10 ** 1000 + 7)",
    "sum": "sum(range(10 ** 15))", "length": "len(list(iter(int, 1)))", "digits": "import sys\n"
    "sys.set_int_max_str_digits(0)\nstr(1 << (1 << 27))",
    "equal hashes": "class A:\n    def __hash__(self): return 1\nd = {}\nwhile True: d[A()] = 1",
    "output": "while True: print('x' * 10 ** 6)", "errors": "import sys\nwhile True: print('x', file=sys.stderr)",
    "output of bytes": "import os\nwhile True: os.write(1, bytes(65536))",
    "alarm without end": "import signal\nsignal.signal(14, lambda *_: 0)\n"
                        "signal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)\nwhile True: pass",
}
CRASHES = {
    "recursion of C": "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n    def __getattr__(self, n): return "
                      "getattr(self, n + 'x')\nA().y",
    "reads nowhere": "import ctypes\nctypes.string_at(0)",
    "writes nowhere": "import ctypes\nctypes.memset(1, 0, 1 << 20)",
    "ends itself": "import os\nos.kill(os.getpid(), 9)", "ends its group": "import os\nos.killpg(0, 9)",
    "aborts": "import os\nos.abort()", "becomes another": "import os, sys\nos.execv('/bin/sh', ['sh', '-c', 'echo 1'])",
    "raises the CPU's limit": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1 << 40, 1 << 40))",
    "closes all and fails": "import os\nos.closerange(0, 64)\nos._exit(3)",
    "division by zero of a signal": "import os\nos.kill(os.getpid(), 8)",
}


@pytest.fixture(scope="module")
def ends():
    """Status and seconds of those that never end, and of those that crash."""
    def run(program):
        start = time.monotonic()
        return run_python(program, Limits(seconds=0.7)).status, time.monotonic() - start

    with ThreadPoolExecutor(6) as threads:
        return dict(zip(ENDLESS | CRASHES, threads.map(run, (ENDLESS | CRASHES).values())))


@pytest.mark.parametrize("name", ENDLESS | CRASHES)
def test_what_never_ends_is_ended_and_what_crashes_has_failed(name, ends):
    status, seconds = ends[name]
    assert status is None if name not in CRASHES else status != 0
    assert seconds < 0.7 + 20  # to start on a busy machine, and to end


def test_a_sandbox_after_all_of_them_is_as_before(outcomes, ends):
    assert run_python("print(sum(range(5)))").output == "10\n"
    assert not [path for path in (Path("/tmp/hostile"), PROJECT / "hostile", Path(os.__file__).with_name("hostile.py"))
                if path.exists()]
