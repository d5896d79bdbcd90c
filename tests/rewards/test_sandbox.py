"""The sandbox: what a program gets and is refused, its limits, what is left of it, and machines that have none."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandboxed import needs_sandbox, running

from errors import InputError
from rewards.execution import sandbox
from rewards.execution import ways as ways_module
from rewards.execution.sandbox import Limits, Outcome, check_sandbox, run_python
from rewards.execution.ways import Way, ways

PROJECT = Path(__file__).resolve().parents[2]
VARIABLES = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(params=[pytest.param(False, marks=needs_sandbox), True], ids=["sandbox", "unsafe"])
def unsafe(request):
    return request.param


def gone(find, seconds=5.0):
    """Whether `find` comes to find nothing."""
    end = time.monotonic() + seconds
    while find() and time.monotonic() < end:
        time.sleep(0.02)
    return not find()


def test_output_and_status(unsafe):
    program = "import sys\nprint('out', flush=True)\nprint('err', file=sys.stderr)\nsys.exit(3)"
    assert run_python(program, unsafe=unsafe) == Outcome("out\nerr\n", 3)
    assert run_python("print(__name__, repr(input()) if 0 else 'ä')", unsafe=unsafe) == Outcome("__main__ ä\n", 0)
    assert "EOFError" in run_python("input()", unsafe=unsafe).output


def test_status_of_a_signal(unsafe):
    assert run_python("import os\nos.kill(os.getpid(), 9)", unsafe=unsafe).status == 128 + signal.SIGKILL


def test_time_is_limited(unsafe):
    start = time.monotonic()
    for program in ("while True: pass", "import time\nprint('x', flush=True)\ntime.sleep(99)",
                    "import os, time\nos.closerange(0, 99)\ntime.sleep(99)"):
        assert run_python(program, Limits(seconds=1.0), unsafe).status is None
    assert time.monotonic() - start < 3 + 5


def test_output_is_limited(unsafe):
    outcome = run_python("while True: print('x' * 1000)", Limits(seconds=20.0, output_bytes=5000), unsafe)
    assert len(outcome.output) == 5000
    assert outcome.status is None
    assert run_python("print('x' * 4999)", Limits(output_bytes=5000), unsafe).status == 0


def test_memory_files_and_cpu_are_limited(unsafe):
    limits = Limits(seconds=20.0, memory_mb=200, disk_mb=1, open_files=20)
    assert "MemoryError" in run_python("bytearray(200 << 20)", limits, unsafe).output
    assert "File too large" in run_python("open('x', 'wb', 0).write(bytes(1 << 20)); open('x', 'ab', 0).write(b'1')",
                                          limits, unsafe).output + "File too large" * (not unsafe)
    assert "Too many open files" in run_python("[open('/dev/null') for _ in range(20)]", limits, unsafe).output
    assert Limits(seconds=1.5).resources()["RLIMIT_CPU"] == 3


@needs_sandbox
def test_files_are_limited_together():
    program = "for i in range(3): open(str(i), 'wb').write(bytes(700_000))"
    assert "No space left" in run_python(program, Limits(disk_mb=1)).output


GAVE_UP = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(os.getuid(), 0 in os.getresuid(), os.getresgid())
for name, *arguments in (
        ("setresuid", os.geteuid(), -1, -1), ("setuid", os.geteuid()), ("setresuid", 0, 0, 0),
        ("setresuid", 65534, 0, 0), ("setgid", 0), ("setgroups", 1, (ctypes.c_int * 1)(0)),
        ("mount", b"tmpfs", b"/tmp", None, 38, b"nr_inodes=9999"), ("prctl", 41, 0, 0, 0, 0)):
    print(name, getattr(libc, name)(*arguments))
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[1 << 21 | 3 << 6] * 3)
print("capset", libc.capset(header, sets))
"""


@needs_sandbox
@pytest.mark.parametrize("way", ways())
def test_nobody_is_inside_and_rights_are_given_up(way, monkeypatch):
    monkeypatch.setattr(sandbox, "_found", lambda: way)
    first, *tried = run_python(GAVE_UP).output.splitlines()
    assert first == "65534 False (65534, 65534, 65534)"
    assert len(tried) == 9
    assert {answer.split()[1] for answer in tried if way.user or "setresuid" not in answer} == {"-1"}


OWN = """
import os
open("x", "w").close()
print(os.stat("x").st_uid == os.getuid() == os.geteuid(), os.stat("x").st_gid == os.getgid(), os.access("x", os.W_OK))
"""


@needs_sandbox
@pytest.mark.parametrize("way", ways())
def test_files_are_those_of_who_writes_them(way, monkeypatch):
    monkeypatch.setattr(sandbox, "_found", lambda: way)
    assert run_python(OWN).output == "True True True\n"


@needs_sandbox
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_what_is_the_trainers_alone_can_be_read_where_it_is_given(mode, tmp_path):
    folder = tmp_path / "given"
    folder.mkdir(mode)
    (folder / "text").write_text("5")
    (folder / "text").chmod(mode & 0o644)
    job = {"program": f"print(open('{folder}/text').read())"}
    with sandbox.start("inside", job, Limits(), readable=[str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout.read() == b"5\n"


COUNTS = """
import itertools, os, sys, threading, time
threading.stack_size(32768)
def count(make):
    for i in itertools.count():
        try: make(i)
        except (OSError, RuntimeError): return i
        if i > 5000: return "no end"
print(count(lambda i: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()))
print(count(lambda i: open(str(i), "w").close()), count(lambda i: os.mkdir(f"d{i}")))
sys.stdout.flush()
os._exit(0)
"""


@needs_sandbox
def test_threads_and_files_are_counted():
    way = sandbox._found()
    threads, files = run_python(COUNTS, Limits(seconds=20.0, memory_mb=1024, files=50, threads=20)).output.splitlines()
    assert not way.user or threads == "19"  # and the first thread
    assert not way.files or files == "49 0"  # and the folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user to be")
@needs_sandbox
def test_users_that_cannot_be_mapped_are_another_way(monkeypatch, caplog):
    monkeypatch.setattr(ways_module, "_MAPS", {"uid": "nonsense"})
    sandbox._found.cache_clear()
    assert sandbox._found() == Way(files=True, user=False)
    assert "cannot limit the number of threads" in caplog.text
    assert run_python("print(5)").output == "5\n"
    sandbox._found.cache_clear()


def test_where_the_sandbox_is_required_its_tests_do_not_skip():
    variables = {"PATH": "/nowhere", "PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests'}", "TEMPER_REQUIRE_SANDBOX": "1"}
    done = subprocess.run([sys.executable, "-c", "import sandboxed"], env=variables, capture_output=True, check=False)
    assert done.returncode != 0
    assert b"tests of the sandbox are required" in done.stderr
    assert "TEMPER_REQUIRE_SANDBOX=1" in (PROJECT / ".ci" / "run").read_text()


def test_the_best_way_that_works_is_taken_and_what_does_not_hold_is_told(monkeypatch, no_bwrap, tmp_path, caplog):
    (tmp_path / "bwrap").write_text("#!/bin/sh\ncase $* in *CAP_SYS_ADMIN*) echo No caps >&2; exit 1;; esac\n")
    (tmp_path / "bwrap").chmod(0o755)
    assert sandbox._found() == Way(files=False, user=False)
    assert "cannot limit the number of files" in caplog.text


@needs_sandbox
def test_only_the_interpreter_and_its_libraries_are_there():
    program = "import os\nfor folder, _, files in os.walk('/'):\n    for file in files: print(folder + '/' + file)"
    listed = run_python(program, Limits(seconds=30.0, output_bytes=1 << 26)).output.splitlines()
    known = (sys.base_prefix + "/", "/usr/lib", "/lib", "/temper/rewards/execution/", "/temper/errors.py", "/dev/null",
             "/dev/urandom")
    assert listed
    assert [path for path in listed if not path.replace("//", "/").startswith(known)] == []


@needs_sandbox
def test_environment_is_that_of_no_one(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hush")
    program = "import os, socket\nprint(dict(os.environ), os.getuid(), os.getcwd(), socket.gethostname(), os.getpid())"
    program = program.replace("dict(os.environ)", f"dict(os.environ) == {VARIABLES | {'PWD': '/tmp'}}")
    assert run_python(program) == Outcome("True 65534 /tmp sandbox 2\n", 0)


def test_environment_of_an_unsafe_program_has_no_secrets_either(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hush")
    output = run_python("import os\nprint(*sorted(os.environ))", unsafe=True).output
    assert output.split() == sorted(VARIABLES)


def test_sets_of_strings_have_the_same_order_in_every_run(unsafe):
    outputs = {run_python("print({chr(i) for i in range(97, 123)})", unsafe=unsafe).output for _ in range(3)}
    assert len(outputs) == 1


def test_nothing_inside_is_imported_from_the_folder_it_runs_in(unsafe):
    program = "open('wave.py', 'w').write('print(1)')\nimport wave\nprint(wave.__file__)"
    assert run_python(program, unsafe=unsafe).output.endswith("lib/python{}.{}/wave.py\n".format(*sys.version_info))


def test_children_of_an_unsafe_program_in_its_group_are_ended():
    program = "import subprocess as s, sys\ns.Popen([sys.executable, '-c', 'import time; time.sleep(4321)'])\nprint(1)"
    assert run_python(program, Limits(seconds=2.0), unsafe=True).output == "1\n"
    assert gone(lambda: running("time.sleep(4321)"))


TRAINER = """
import sys, threading
sys.path.insert(0, {project!r})
from rewards.execution.sandbox import run_python, Limits
def nap():
    while True:  # a machine may be too busy for a sandbox at once
        run_python("import time  # nap 8642\\ntime.sleep(99)", Limits(seconds=99.0))
threading.Thread(target=nap).start()
print("up", flush=True)
"""


@needs_sandbox
def test_all_ends_with_a_trainer_that_is_killed():
    before = set(running("rewards.execution.inside"))
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER.format(project=str(PROJECT))], stdout=subprocess.PIPE)
    assert trainer.stdout.readline() == b"up\n"
    end = time.monotonic() + 60
    while len(set(running("rewards.execution.inside")) - before) < 3 and time.monotonic() < end:  # bwrap twice, Python
        time.sleep(0.02)
    assert set(running("rewards.execution.inside")) - before
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert gone(lambda: set(running("rewards.execution.inside")) - before)


def test_without_bubblewrap_code_is_refused_in_one_line_that_says_what_to_do(no_bwrap):
    with pytest.raises(InputError, match="bwrap.*apt install bubblewrap.*--unsafe-code-without-sandbox") as raised:
        run_python("print(1)")
    assert "\n" not in str(raised.value)
    assert run_python("print(1)", unsafe=True) == Outcome("1\n", 0)


def test_a_bubblewrap_that_does_not_work_is_refused_with_what_it_said(no_bwrap, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho bwrap: No permissions to create new namespace >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    for _ in range(2):
        with pytest.raises(InputError, match="No permissions to.*user namespaces.*--unsafe-code-without-sandbox"):
            check_sandbox()
    assert sandbox._found.cache_info().misses == 1


def test_this_process_has_no_files_left_open(unsafe):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run_python("pass", unsafe=unsafe)
    assert len(os.listdir("/proc/self/fd")) == before
