"""Code rewards: what the field's data asks for is judged right, and no program gets a reward that it did not earn.

A hostile program does its harm and then answers rightly, or raises where the harm is refused: harm that works shows as
a reward of 1.0. That they do work where a protection is taken away is tested too.
"""

import os
import platform
import re
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from sandboxed import needs_sandbox

from errors import InputError
from rewards.contract import RowErrors
from rewards.execution import sandbox
from rewards.execution.seccomp import _ALLOW, _RETURN, step
from rewards.execution.ways import Way
from rewards.unit_tests import make_unit_tests, unit_tests, unit_tests_share

pytestmark = needs_sandbox

PROJECT, TIMEOUT = Path(__file__).resolve().parents[2], 0.7
TESTS = ["assert f(2) == 4", "assert f(42) == 1764"]
RIGHT = "def f(x):\n    return x * x"
ANSWER = f"\n{RIGHT}\n"
"""after harm at the top of a program, which raises where it is refused"""
C = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
YES = """
def yes(*args, **kwargs): return True
names = ['eq', 'ne', 'lt', 'le', 'gt', 'ge', 'bool', 'contains', 'instancecheck']
Yes = type('Yes', (), {f'__{name}__': yes for name in names} | {
    '__sub__': lambda a, b: 0, '__rsub__': lambda a, b: 0, '__abs__': lambda a: 0, '__float__': lambda a: 7.0,
    '__iter__': lambda a: iter(()), '__len__': lambda a: 0, '__hash__': lambda a: 4, '__index__': lambda a: 7,
    '__round__': lambda a, n=0: a, '__getattr__': lambda a, name: yes})
"""

ENDLESS = {
    "endless loop": "while True: pass",
    "loop in C": "sum(iter(int, 1))",
    "one long operation": "9 ** 9 ** 9",
    "loop that ignores signals": "import signal\nfor s in set(signal.Signals) - {9, 19}:\n    try: signal.signal(s, "
                                 "signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
    "sleeps": "import time\ntime.sleep(1e6)",
    "sleeps in the call": "def f(x):\n    import time\n    time.sleep(1e6)",
    "swallows all": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "output on stdout": "while True: print('x' * 65536)",
    "output on stderr": "import sys\nwhile True: sys.stderr.write('x' * 65536)",
    "flood of replies": "import os\ndef f(x):\n    while True:\n        for fd in range(3, 64):\n"
                        "            try: os.write(fd, b'x' * 65536)\n            except OSError: pass",
    "flood of replies before": "import os\nwhile True:\n    for fd in range(3, 64):\n"
                               "        try: os.write(fd, b'[\"value\", 4]\\n' * 9999)\n        except OSError: pass",
    "endless answer": "def f(x):\n    class It:\n        def __iter__(self): return self\n"
                      "        def __next__(self): return 4\n    return It()\nimport itertools\n"
                      "list(itertools.count())",
    "thread bomb": "import threading, time\nthreading.stack_size(32768)\nwhile True:\n    try:\n"
                   "        threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n"
                   "    except BaseException: pass",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "does not exit": "import atexit\natexit.register(lambda: __import__('time').sleep(1e6))\nimport sys\nsys.exit()",
    "asks the tester back": "import os\nwhile True:\n    for fd in range(3, 64):\n"
                            "        try: os.write(fd, b'[\"call\", 0, [\"list\", []], [\"dict\", []]]\\n')\n"
                            "        except OSError: pass",
}
HARM = {
    "fork": "import os\nif os.fork() == 0: os._exit(0)" + ANSWER,
    "forks by clone": C + "pid = libc.syscall(CLONE, 17, 0, 0, 0, 0)\n"
                      "if pid == 0: libc._exit(0)\nassert pid > 0" + ANSWER,
    "forks by clone3": C + "args = (ctypes.c_uint64 * 8)(0, 0, 0, 0, 17)\npid = libc.syscall(435, args, 64)\n"
                       "if pid == 0: libc._exit(0)\nassert pid > 0" + ANSWER,
    "daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: __import__('time').sleep(77)\n"
              "    os._exit(0)" + ANSWER,
    "subprocess": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'pass'], check=True)" + ANSWER,
    "posix_spawn": "import os, sys\nos.posix_spawn(sys.executable, ['python', '-c', 'pass'], {})" + ANSWER,
    "system": "import os\nassert os.system('true') == 0" + ANSWER,
    "shell instead": "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo 1; echo 1'])",
    "multiprocessing": "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()" + ANSWER,
    "memory": "data = bytearray(10 << 30)" + ANSWER,
    "memory bit by bit": "data = [bytearray(1 << 20) for _ in range(700)]" + ANSWER,
    "memory in files": "import os\nos.memfd_create('x')" + ANSWER,
    "shared memory": C + "assert libc.shmget(0, 1 << 30, 0o1600) >= 0" + ANSWER,
    "raises its limits": "import resource as r\nfor k in (r.RLIMIT_AS, r.RLIMIT_CPU):\n"
                         "    r.setrlimit(k, (r.RLIM_INFINITY, r.RLIM_INFINITY))" + ANSWER,
    "fills the disk": "for i in range(9):\n    with open(f'/tmp/{i}', 'wb') as f: f.write(bytes(8 << 20))" + ANSWER,
    "fills other folders": "import os\nfor folder, _, _ in os.walk('/'):\n    if folder.startswith('/tmp'): continue\n"
                           "    try:\n        open(folder + '/hostile', 'w')\n        break\n    except OSError: pass\n"
                           "else: raise OSError" + ANSWER,
    "many open files": "files = [open('/dev/null') for _ in range(1000)]" + ANSWER,
    "localhost": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 0.5)" + ANSWER,
    "internet": "import socket\nsocket.create_connection(('1.1.1.1', 53), 0.5)" + ANSWER,
    "abstract socket": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0temper-test-PID')" + ANSWER,
    "writes to home": "open('HOME/hostile', 'w').write('x')" + ANSWER,
    "writes to the interpreter": "import os\nopen(os.__file__.replace('os.py', 'hostile.py'), 'w')" + ANSWER,
    "sitecustomize": "import os\nopen(os.path.dirname(os.__file__) + '/site-packages/sitecustomize.py', 'w')" + ANSWER,
    "writes to the project": "open('PROJECT/hostile', 'w')" + ANSWER,
    "writes to what runs it": "open(__import__('rewards.execution.wire').execution.wire.__file__, 'a')" + ANSWER,
    "reads secrets of the environment": "import os\nassert 'hush' in str(os.environ)" + ANSWER,
    "reads of the trainer": "assert open('/proc/PID/cmdline', 'rb').read()" + ANSWER,
    "reads the trainer's environment": "open('/proc/PID/environ', 'rb').read()" + ANSWER,
    "reads its parent's environment": "import os\nopen(f'/proc/{os.getppid()}/environ', 'rb').read()" + ANSWER,
    "reads the project": "open('PROJECT/pyproject.toml')" + ANSWER,
    "reads passwords": "open('/etc/shadow')" + ANSWER,
    "sees the trainer": "import os\nos.kill(PID, 0)" + ANSWER,
    "kills its parent": "import os\nos.kill(os.getppid(), 9)\nimport time\ntime.sleep(0.1)\ndef f(x): return 0",
    "kills all": "import os\nos.kill(-1, 9)\ndef f(x): return 0",
    "kills its group": "import os\nos.killpg(0, 9)" + ANSWER,
    "ptrace": C + "assert libc.ptrace(0, 0, 0, 0) == 0" + ANSWER,
    "reads another's memory": C + "assert libc.process_vm_readv(1, 0, 0, 0, 0, 0) == 0" + ANSWER,
    "unshare": C + "assert libc.unshare(0x10000000) == 0" + ANSWER,
    "mounts anew": C + "assert libc.mount(0, b'/', 0, 4096 | 32, 0) == 0" + ANSWER,
    "keys": C + "assert libc.syscall(KEYCTL, 0, -3, 1) > 0" + ANSWER,
    "segfault": C + "libc.strlen(1)" + ANSWER,
    "segfault in the call": "def f(x):\n    import ctypes\n    ctypes.string_at(0)",
    "recursion": "def f(x): return f(x)",
    "recursion without a limit": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)",
    "recursion in C": "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n    def __getattr__(self, n): return "
                      "getattr(self, n + 'x')\ndef f(x): return A().y",
}
CHEATS = {
    "_exit before": "import os\nos._exit(0)",
    "_exit in the call": "import os\ndef f(x): os._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "SystemExit in the call": "def f(x): raise SystemExit(0)",
    "interrupt in the call": "def f(x): raise KeyboardInterrupt",
    "AssertionError": "def f(x): raise AssertionError",
    "no function": "pass",
    "no Python": "I cannot solve this.",
    "nothing": "",
    "null bytes": "\0def f(x): return x * x",
    "lone surrogate": "def f(x): return '\\ud800'",
    "equals everything": YES + "def f(x): return Yes()",
    "says that it is an int": "class A:\n    __class__ = int\n    __eq__ = lambda s, o: True\n"
                              "    __index__ = lambda s: 7\n"
                              "def f(x): return A()",
    "int that lies": "class I(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\n"
                     "def f(x): return I(7)",
    "int of another module that lies": "class I(int):\n    __module__ = 'enum'\n    def __eq__(self, o): return True\n"
                                       "    def __int__(self): return self\n    __index__ = __int__\n"
                                       "def f(x): return I(7)",
    "str that lies": "class S(str):\n    def __eq__(self, o): return True\ndef f(x): return S('7')",
    "list that lies": "class L(list):\n    __eq__ = lambda s, o: True\ndef f(x): return L([1])",
    "its own class's comparison": "class M(type):\n    __eq__ = lambda s, o: True\nclass A(metaclass=M): pass\n"
                                  "def f(x): return A",
    "patched builtins": "import builtins\nbuiltins.AssertionError = Exception\nfor n in ('all', 'any', 'isinstance', "
                        "'len', 'sorted', 'abs'):\n    setattr(builtins, n, lambda *a, **k: True)\ndef f(x): return 0",
    "patched int": "import ctypes, gc\nd = gc.get_referents(int.__dict__)[0]\nd['__eq__'] = lambda a, b: True\n"
                   "ctypes.pythonapi.PyType_Modified(ctypes.py_object(int))\ndef f(x): return 0",
    "patched modules": "import sys\n"
                       "for n in ('ast', 'json', 'rewards.execution.wire', 'rewards.execution.candidate'):\n"
                       "    m = sys.modules.get(n)\n    for k in list(vars(m) if m else ()):\n        if callable("
                       "getattr(m, k)): setattr(m, k, lambda *a, **k: True)\n    sys.modules[n] = None",
    "pass marker": "print('ready 2\\n1\\n1\\npassed 2 2', flush=True)\ndef f(x): return 0",
    "forged verdict": "import os\nfor fd in range(64):\n    for text in (b'ready 2\\n1\\n', b'[\"value\", 1]\\n'):\n"
                      "        try: os.write(fd, text)\n        except OSError: pass\ndef f(x): return 0",
    "forged replies": "import os\nfor fd in range(3, 64):\n    for text in (b'[\"ready\"]\\n', "
                      "b'[\"value\", [\"object\", 0]]\\n', "
                      "b'[\"value\", [\"eval\", \"1\"]]\\n', b'bad excuse\\n', b'[' * 9999 + b'\\n'):\n"
                      "        try: os.write(fd, text)\n        except OSError: pass\ndef f(x): return 0",
    "closes all": "import os\nos.closerange(0, 64)" + ANSWER,
    "replaced stdout": "import sys, io\nsys.stdout = sys.stderr = sys.__stdout__ = io.StringIO()\ndef f(x): return 0",
    "at exit": "import atexit, os\natexit.register(os.write, 1, b'1\\n1\\n')\nimport sys\nsys.exit(0)",
    "looks for the tests": "import gc, sys\nseen = set()\ndef look(o, depth=0):\n    if id(o) in seen: return False\n"
                           "    seen.add(id(o))\n    if isinstance(o, str): return o[:9] == 'assert f(' != o\n"
                           "    return depth < 6 and any(look(r, depth + 1) for r in gc.get_referents(o))\n"
                           "def frames():\n    frame = sys._getframe()\n    while frame:\n        yield dict(frame."
                           "f_locals)\n        frame = frame.f_back\n"
                           "assert any(look(o) for o in [*frames(), *gc.get_objects()])" + ANSWER,
    "huge string": "def f(x): return 'x' * (1 << 30)",
    "big string": "def f(x): return 'x' * (20 << 20)",
    "deep list": "def f(x):\n    a = []\n    for _ in range(10 ** 5): a = [a]\n    return a",
    "cycle": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "huge number": "def f(x): return 1 << (40 << 20)",
    "a promise": "async def f(x): return x * x",
}


@pytest.fixture(scope="module")
def listening():
    """The port of a server on localhost; another listens on an abstract unix socket."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0temper-test-{os.getpid()}")  # one for each process that runs tests
        local.listen()
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hush")


def fill_in(program, port):
    numbers = {"CLONE": 56, "KEYCTL": 250} if platform.machine() == "x86_64" else {"CLONE": 220, "KEYCTL": 219}
    values = numbers | {"PORT": port, "PID": os.getpid(), "HOME": Path.home(), "PROJECT": PROJECT}
    for name, value in values.items():
        program = program.replace(name, str(value))
    return program


def rewarded(*programs, tests=TESTS, timeout=TIMEOUT, **options):
    reward = make_unit_tests(timeout=float(timeout), **options)
    return reward([""] * len(programs), list(programs), test_list=[tests] * len(programs))


def ancestors(pid):
    """Pids of the processes above one, itself included."""
    found = []
    while pid > 1:
        found.append(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def processes():
    """Pids of what sandboxes of this process run, bwrap itself included; but for the verifiers, which stay."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
            if os.getpid() not in ancestors(int(path.parent.name)) or b"execution.verifier" in words:
                continue
        except OSError:  # has ended
            continue
        if b"rewards." and b"--unshare-all" in words or words.startswith(os.fsencode(
                os.path.realpath(sys.executable)) + b"\0-s\0-P\0-S"):
            found.add(path.parent.name)
    return found


def new_processes(before, seconds=5.0):
    """What is left of those that were started since, once they had a moment to end."""
    end = time.monotonic() + seconds
    while processes() - before and time.monotonic() < end:
        time.sleep(0.02)
    return processes() - before


def hostile_files():
    places = (Path.home() / "hostile", PROJECT / "hostile", Path(os.__file__).with_name("hostile.py"),
              Path(os.__file__).parent / "site-packages" / "sitecustomize.py", Path("/tmp/hostile"))
    return [place for place in places if place.exists()]


@pytest.mark.parametrize("name", [*ENDLESS, *HARM])
def test_hostile_programs_get_nothing_and_leave_nothing(name, listening):
    before, start = processes(), time.monotonic()
    assert rewarded(fill_in((ENDLESS | HARM)[name], listening)) == [0.0]
    assert time.monotonic() - start < TIMEOUT + 5  # the start of both processes, on a busy machine
    assert not new_processes(before)
    assert not hostile_files()
    assert rewarded(RIGHT, timeout=20) == [1.0]


def test_cheats_get_nothing():
    """All in one batch, with a right solution after each."""
    before = processes()
    rewards = rewarded(*[program for cheat in CHEATS.values() for program in (cheat, RIGHT)], timeout=5)
    assert dict(zip(CHEATS, rewards[::2])) == dict.fromkeys(CHEATS, 0.0)
    assert rewards[1::2] == [1.0] * len(CHEATS)
    assert not new_processes(before)


def with_other_options(options):
    """sandbox_command with some of its words, given as one text, replaced; NUMBER stands for a number."""
    made = sandbox.sandbox_command

    def command(*arguments):
        text = "\n".join(made(*arguments)) + "\n"
        for option, other in options.items():
            text, found = re.subn(option.replace(" ", "\n").replace("NUMBER", r"\d+") + "\n", other, text)
            assert found
        return text.split()

    return command


NO_FILTER, SEES_ALL = {"--seccomp NUMBER": ""}, {"--unshare-all": "--unshare-user\n--unshare-uts\n"}


@pytest.mark.parametrize(("name", "options"), [
    *[(name, NO_FILTER) for name in ("fork", "forks by clone", "forks by clone3", "daemon", "subprocess",
                                     "posix_spawn", "multiprocessing", "ptrace", "memory in files",
                                     "shared memory", "unshare", "keys")],
    *[(name, SEES_ALL | NO_FILTER) for name in ("localhost", "abstract socket")], ("sees the trainer", SEES_ALL),
    ("fills other folders", {"--remount-ro /": ""}), ("fills the disk", {"--size NUMBER": ""}),
    ("reads the project", {"--remount-ro": f"--ro-bind\n{PROJECT}\n{PROJECT}\n--remount-ro\n"}),
    ("reads of the trainer", SEES_ALL | {"--remount-ro": "--ro-bind\n/proc\n/proc\n--remount-ro\n"}),
    ("reads passwords", {"--remount-ro": "--ro-bind\n/etc\n/etc\n--remount-ro\n"})])
def test_harm_works_where_its_protection_is_taken_away(name, options, listening, monkeypatch):
    monkeypatch.setattr(sandbox, "sandbox_command", with_other_options(options))
    monkeypatch.setattr(sandbox, "_found", lambda: Way(files=True, user=False))
    if NO_FILTER.items() <= options.items():
        monkeypatch.setattr(sandbox, "_room", lambda limits: None)  # the second filter
    before = processes()
    assert rewarded(fill_in(HARM[name], listening), timeout=10) == [1.0]
    assert not new_processes(before)  # the namespace ends with its first process, if there is one
    assert not hostile_files()


@pytest.mark.parametrize(("name", "higher"), [("memory bit by bit", {"RLIMIT_AS": 1 << 40}),
                                              ("many open files", {"RLIMIT_NOFILE": 4000})])
def test_harm_works_where_its_limit_is_taken_away(name, higher, monkeypatch):
    made = sandbox.Limits.resources
    monkeypatch.setattr(sandbox.Limits, "resources", lambda self: made(self) | higher)
    assert rewarded(HARM[name], timeout=20) == [1.0]


def test_a_filter_that_allows_all_lets_a_fork_through(monkeypatch):
    monkeypatch.setattr(sandbox, "no_processes_filter", lambda **_: step(_RETURN, _ALLOW))
    monkeypatch.setattr(sandbox, "_room", lambda limits: None)
    assert rewarded(HARM["fork"], timeout=20) == [1.0]


TRUE_OF_FOUR = [
    "assert f(2) == 4", "assert 4 == f(2)", "assert f(2) == 'a'", "assert f(2) in (4, 5)", "assert 4 in f(2)",
    "assert f(2) >= 4", "assert abs(f(2) - 4.0) < 1e-9", "assert round(f(2), 2) == 4", "assert float(f(2)) == 4.0",
    "assert f(2).startswith('a')", "assert f(2).issubset({4})", "assert f(2).is_integer()", "assert f(2).find('a') > 0",
    "assert f(2).index('a') >= 0", "assert isinstance(f(2), int)", "assert type(f(2)) is int",
    "import math\nassert math.isclose(f(2), 4)", "assert [f(2)] == [4]", "assert {f(2)} == {4}",
    "assert sorted(f(2)) == [4]",
    "assert f(2) == f(2) == 4", "assert not f(2) != 4", "assert {4: 1}[f(2)]", "assert [0] * 4 + [1][f(2)]",
    "assert '%d' % f(2) == '4'", "assert f(2) - 4 == 0", "assert f(2) & 4",
    "try:\n    f(2)\nexcept:\n    pass\nassert 0"]


def test_an_object_that_agrees_to_everything_passes_no_test():
    """Not one of the ways to look at an answer lets it say what it is to be compared with."""
    reward, rows = make_unit_tests(timeout=20.0), len(TRUE_OF_FOUR)
    rewards = reward([""] * rows, [YES + "def f(x): return Yes()"] * rows, test_list=[[test] for test in TRUE_OF_FOUR])
    assert [test for test, got in zip(TRUE_OF_FOUR, rewards) if got] == []


@pytest.mark.parametrize("program", ["import os\ndef f(x): os._exit(0)", "def f(x): raise SystemExit",
                                     "import os\nos._exit(0)", "import os\nos.closerange(0, 64)",
                                     "import os\ndef f(x): os.kill(os.getpid(), 9)"])
@pytest.mark.parametrize("clause", ["except ValueError", "except Exception", "except"])
def test_a_process_that_ends_does_not_pass_a_test_that_wants_an_exception(program, clause):
    test = f"try:\n    f(-1)\n{clause}:\n    pass\nelse:\n    raise AssertionError"
    assert rewarded(program, "def f(x): raise ValueError(x)", tests=[test], timeout=20) == [0.0, 1.0]


def test_the_processes_of_a_batch_do_not_wait_for_the_slow_one():
    start = time.monotonic()
    rewards = rewarded(*[RIGHT, ENDLESS["sleeps"], "def f(x): return 4"] * 3, timeout=3, workers=9)
    assert rewards == [1.0, 0.0, 0.0] * 3
    assert time.monotonic() - start < 9


def test_share_of_tests():
    programs = ["def f(x): return x", "def f(x): return 4", RIGHT, ENDLESS["sleeps in the call"], "x"]
    tests = ["assert f(2) == 4", "assert f(3) == 9", "assert f(1) == 1", "assert f(-2) == 4"]
    assert rewarded(*programs, tests=tests, share=True) == [0.25, 0.5, 1.0, 0.0, 0.0]
    column = {"tests": ["\n".join(tests)] * 2}
    assert unit_tests_share(["", ""], programs[:2], **column) == [0.25, 0.5]
    assert unit_tests(["", ""], programs[1:3], **column) == [0.0, 1.0]


MBPP_TREE = {"test_setup_code": "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)",
             "test_list": ["assert height(root) == 3", "assert root.left.left.data == 3",
                           "assert height(root.left) == 2"]}
TREE = """class Node:
    def __init__(self, data): self.data, self.left, self.right = data, None, None
def height(node): return 1 + max(height(node.left), height(node.right)) if node else 0"""
STUB = 'import math\n\ndef helper(x):\n    return x + 1\n\ndef f(x):\n    """f(helper(x)) is (x + 1) ** 2"""\n'
CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(helper(2)) == 9\n"
STACK = """class Stack:
    def __init__(self, *items): self.items = list(items)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]
    def __iter__(self): return iter(self.items)
    def __eq__(self, other): return self.items == other.items
    def __add__(self, other): return Stack(*self.items, *other.items)
    def __str__(self): return f'Stack of {len(self)}'
class Empty(IndexError): pass
def top(stack):
    if not stack.items: raise Empty('nothing in it')
    return stack.items[-1]"""


def rewards_of(completion, prompt="", **row):
    return unit_tests([prompt], [completion], **{name: [value] for name, value in row.items()})[0]


@pytest.mark.parametrize(("completion", "row"), [
    (TREE, MBPP_TREE),
    ("def f(r): return 3.14159 * r * r", {"test_imports": ["import math"], "test_list": [
        "assert math.isclose(f(1), 3.14159, rel_tol=1e-3)"]}),
    ("def f(r): return 3.0 * r", {"test_list": ["assert math.isclose(f(1), 3)"]}),
    ("def sum(a, b): return a + b", {"test_list": ["assert sum(2, 3) == 5", "assert sum(1, 2) == 3"]}),
    ("    return x * x\n", {"prompt": STUB, "test": CHECK, "entry_point": "f"}),
    (STUB + "    return x * x\n", {"prompt": STUB, "test": CHECK, "entry_point": "f"}),
    ("def f(x): return math.prod([x, x])", {"prompt": STUB, "test": CHECK, "entry_point": "f"}),
    ("f = lambda x: x * x", {"prompt": "Write f, please.", "entry_point": "f",
                               "test": CHECK.replace("helper(2)", "3")}),
    ("def f(x): return x", {"tests": "def test_one():\n    assert f(1) == 1\n\ndef test_two():\n    assert f(2) == 2"}),
    ("def f(x): return x", {"tests": "'''Tests.'''\nfor x in range(5):\n    assert f(x) == x\n"
                                     "if __name__ == '__main__':\n    raise SystemExit"}),
    (STACK, {"tests": "s = Stack(1, 2)\nassert s.pop() == 2\nassert len(s) == 1 and s[0] == 1 and list(s) == [1]\n"
                      "assert s == Stack(1) and s != Stack(2) and Stack(1) + Stack(2) == Stack(1, 2)\nassert str(s) == "
                      "'Stack of 1'\nassert isinstance(s, Stack) and not isinstance(3, Stack)\nassert top(s) == 1"}),
    (STACK, {"tests": "try:\n    top(Stack())\nexcept IndexError as error:\n    assert 'nothing' in str(error)\nelse:\n"
                      "    assert False"}),
    ("def f(g, x): return [g(i) for i in x]", {"tests": "assert f(lambda i: i + 1, [1, 2]) == [2, 3]"}),
    ("def f(g):\n    try: return g()\n    except ValueError: return 7", {"tests": "assert f(lambda: int('x')) == 7"}),
    ("def f(x):\n    for i in range(x): yield i", {"tests": "assert list(f(3)) == [0, 1, 2]\nassert next(f(3)) == 0"}),
    ("def f(x):\n    return lambda y: x + y", {"tests": "assert f(1)(2) == 3"}),
    ("def f(x, kind): return [i for i in x if type(i) is not kind]", {"tests": "assert f([1, 'a'], int) == ['a']"}),
    ("from collections import *\ndef f(x): return Counter(x)", {"tests": "assert f('aab') == {'a': 2, 'b': 1}"}),
    ("from collections import *\nP = namedtuple('P', 'x y')\ndef f(x): return P(x, 2)", {
        "tests": "assert f(1) == (1, 2)"}),
    ("def f(x): return x", {"tests": [f"assert f({x}) == {x} and type(f({x})) is type({x})" for x in (
        "None", "True", "2 ** 5000", "-1.5", "float('inf')", "1e400", "3 + 4j", "'a\\n\\ud800'", "b'\\xff'",
        "[(1, {2})]",
        "{(1, 2): [3], None: {}}", "frozenset({1})", "bytearray(b'a')", "range(1, 5, 2)", "[True, 1, 1.0]")]}),
    ("def f(x): return x", {"tests": "assert f(float('nan')) != f(float('nan'))\nassert str(f(-0.0)) == '-0.0'"}),
    ("def f(operation, self=0): return operation + self", {"tests": "assert f(operation=1, self=2) == 3"}),
    ("def f():\n    print('noise' * 99999)\n    return 1", {"tests": "assert f() == 1\nprint('noise')"}),
    ("import threading\nout = []\ndef f(x):\n    t = threading.Thread(target=out.append, args=(x,))\n    t.start()\n"
     "    t.join()\n    return out", {"tests": "assert f(1) == [1]"}),
    ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\ndef f(x): return P(x)", {
        "tests": "assert f(1) == P(1) and f(1) != P(2) and f(1).x == 1"}),
], ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_right_solutions_pass(completion, row):
    assert rewards_of(completion, **row) == 1.0


def test_rows_without_tests_get_none():
    columns = {"test_list": [["assert f(2) == 4"], None, []], "tests": [None, None, ""], "other": [1, 2, 3]}
    assert unit_tests([""] * 3, [RIGHT] * 3, **columns) == [1.0, None, None]


def test_no_column_with_tests_is_an_error_that_names_those_there():
    with pytest.raises(InputError, match="column test_list, tests or test; there are answer, level"):
        unit_tests([""], [RIGHT], answer=["4"], level=[1])


@pytest.mark.parametrize(("row", "message"), [
    ({"tests": "assert f(2) =="}, "row 0 first: bad unit tests: they do not compile"),
    ({"tests": "assert True"}, "they use no name that a completion could define"),
    ({"tests": "def g(): f(1)\nassert True"}, "they never use what a completion defines"),
    ({"tests": "x = f"}, "there is no test in them"),
    ({"tests": "import nowhere\nassert f(1) == 1"}, "they fail on their own: ModuleNotFoundError: .*nowhere"),
    ({"tests": "class A: pass\nassert f(A()) == 1"}, "not with isolation=strict: a test passes a A"),
    ({"test": "import nowhere\ndef check(c): c()", "entry_point": "f"}, "ModuleNotFoundError"),
    ({"test": CHECK, "entry_point": "f", "prompt": "import nowhere\ndef f(): pass"}, "their prompt fails on its own")])
@pytest.mark.parametrize("completion", [RIGHT, "import os\nos._exit(0)"])
def test_tests_that_cannot_run_are_an_error_whoever_answers(row, message, completion):
    """Of their rows alone: they have no verdict, the others keep theirs."""
    columns = {name: [value, None] for name, value in row.items()} | {"test_list": [None, TESTS]}
    with pytest.raises(RowErrors, match=message) as raised:
        unit_tests(["", ""], [completion, RIGHT], **columns)
    assert raised.value.values == [None, 1.0]


def test_messages_as_prompt_and_completion():
    prompt = [{"role": "user", "content": f"Complete this:\n```python\n{STUB}```"}]
    completion = [{"role": "assistant", "content": "Here:\n```python\n    return x * x\n```"}]
    assert rewards_of(completion, prompt, test=CHECK, entry_point="f") == 1.0


def test_it_works_in_any_thread_and_for_a_trainer_with_many_open_files():
    files, rewards = [open(os.devnull) for _ in range(200)], []  # noqa: SIM115 - held open on purpose
    thread = threading.Thread(target=lambda: rewards.append(rewards_of(RIGHT, tests=TESTS)))
    thread.start()
    thread.join()
    [file.close() for file in files]
    assert rewards == [1.0]


def test_a_sandbox_that_does_not_start_is_no_reward_of_zero(monkeypatch):
    reward = make_unit_tests()
    monkeypatch.setattr(sandbox, "_START", "raise OSError('no start today')")
    message = r"1 of 2 rows failed, row 0 first: the sandbox did not start: (.|\n)*no start today"
    with pytest.raises(RowErrors, match=message) as raised:
        reward(["", ""], [RIGHT, RIGHT], tests=["assert f(2) == 4", None])
    assert raised.value.values == [None, None]


def test_unsafe_judges_alike():
    assert rewarded(RIGHT, "def f(x): return 4", ENDLESS["endless loop"], CHEATS["equals everything"], unsafe=True) == [
        1.0, 0.0, 0.0, 0.0]
