"""Verifiers in sandboxes: bounded in time, replaced when they die, bare of jax, gone with their trainer, and untouched
by what they read."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sandboxed import needs_sandbox, running

from rewards.contract import Clock, NotReachedError, on_clock, time_left
from rewards.execution import processes
from rewards.execution.cpus import cpus
from rewards.execution.processes import Pool, VerifierError
from rewards.execution.turns import in_turns

pytestmark = needs_sandbox

ACTS = """
import ctypes, gc, json, os, socket, subprocess, sys, threading, time
STATE = []

def act(what, *arguments):
    print("noise that is no reply", flush=True)
    return globals()[what](*arguments)

length, sleep, fail, pid = len, (lambda s: time.sleep(s) or s), (lambda: 1 // 0), os.getpid
def spin():
    while True: pass
def power(): return len(str(9 ** 9 ** 9))
def leave(status): os._exit(status)
def raises(): raise SystemExit(0)
def jax(): return [name for name in ("jax", "__mp_main__") if name in sys.modules]
def memory(): return len(bytearray(8 << 30))
def recursion(): return recursion()
def flood(): return "x" * (2 << 20)
def nonsense(): return {1, 2}
def nan(): return float('nan')
def remember(value):
    STATE.append(value)
    globals()["length"] = lambda text: -1
    json.dumps = None
    return len(STATE)
def count(): return len(STATE)
def frozen(): return sys.setrecursionlimit(50) or 1
def write(path): return open(path, "w") and 1
def read(path): return len(open(path).read())
def remove(path): return os.remove(path) or 1
def folder(path): return os.mkdir(path) or 1
def fork(): return os.fork()
def command(text): return os.system(text)
def kill(pid, number): return os.kill(pid, number) or 1
def group(): return os.killpg(0, 9) or 1
def connect(): return bool(socket.socket())
def execute(): return os.execv(sys.executable, ["python", "-c", "print(1)"])
def forge(text):
    \"""Writes on every descriptor that a process can have.\"""
    sent = 0
    for number in range(3, 256):
        try: sent += os.write(number, text.encode() + b"\\n")
        except OSError: pass
    return spin()
def limits():
    import resource
    return resource.setrlimit(resource.RLIMIT_CPU, (10 ** 6, 10 ** 6)) or 1
def unbound():
    import signal
    signal.setitimer(signal.ITIMER_PROF, 0)
    return spin()
def thread():
    values = []
    worker = threading.Thread(target=lambda: values.append(1))
    worker.start(), worker.join()
    return values
"""
TRAINER = """
import sys, threading, time
import fake_jax as jax
sys.modules["jax"] = jax
from rewards.execution.processes import Pool
if __name__ == "__main__":
    idle, busy = Pool("acts:act", 1, [sys.argv[1]]), Pool("acts:act", 1, [sys.argv[1]])
    [loaded] = idle.map([("jax",)], 5.0)
    threading.Thread(target=busy.map, args=([("spin",)], 20.0), daemon=True).start()
    time.sleep(0.3)
    print("loaded", *loaded, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("acts")
    (folder / "acts.py").write_text(ACTS)
    return str(folder)


@pytest.fixture(scope="module")
def acts(folder):
    return Pool("acts:act", 1, [folder])


def test_values_stay_in_their_places(acts):
    values = acts.map([("length", "x" * n) for n in (3, 1_000_000, 0)] + [("fail",), ("thread",)], 5.0)
    assert values[:3] == [3, 1_000_000, 0]
    assert isinstance(values[3], VerifierError)
    assert "ZeroDivisionError" in str(values[3])
    assert values[4] == [1]
    assert acts.map([], 5.0) == []


@pytest.mark.parametrize("what", ["spin", "power", "unbound"])  # a loop in Python, one long operation in C, no timer
def test_a_verifier_that_hangs_costs_its_time_and_no_more(acts, what):
    values = acts.map([("length", "abc"), (what,), ("length", "ab")], 0.3)
    assert (values[0], values[2]) == (3, 2)
    assert type(values[1]) is TimeoutError
    assert "0.3 s" in str(values[1])


@pytest.mark.parametrize("what", ["fail", "raises", "memory", "recursion", "flood", "nonsense"])
def test_a_verifier_that_fails_is_told_and_does_no_harm(acts, what):
    failed, value = acts.map([(what,), ("length", "ab")], 5.0)
    assert isinstance(failed, VerifierError)
    assert value == 2


def test_a_child_that_ends_is_told(acts):
    [failed] = acts.map([("leave", 3)], 5.0)
    assert "ended with status 3" in str(failed)


def test_nothing_outlives_its_call(acts):
    assert acts.map([("remember", "x"), ("count",), ("frozen",), ("length", "ab"), ("remember", "y")], 5.0) == [
        1, 0, 1, 2, 1]


@pytest.mark.parametrize("call", [
    ("write", "/tmp/made"), ("folder", "/tmp/made"), ("remove", "/tmp/made"), ("fork",), ("kill", 1, 9), ("kill", 2, 9),
    ("kill", -1, 9), ("group",), ("connect",), ("execute",), ("read", "/proc/1/environ"), ("read", "/etc/shadow"),
    ("limits",), ("read", str(Path(__file__).parents[2] / "pyproject.toml"))], ids=str)
def test_a_child_may_only_compute(acts, call):
    failed, value = acts.map([call, ("length", "ab")], 5.0)
    assert isinstance(failed, VerifierError)
    assert "Error" in str(failed)
    assert value == 2


def test_no_command_is_run(acts):
    assert acts.map([("command", "true")], 5.0)[0] != 0


def test_forged_replies_reach_nobody(acts):
    values = acts.map([("forge", '{"value": 1.0}'), ("length", "abc"), ("forge", '{"id": "0", "value": 1.0}')], 0.3)
    assert [type(value) for value in values] == [TimeoutError, int, TimeoutError]


def test_a_reply_that_nobody_asked_for_ends_the_process(folder, monkeypatch):
    acts = Pool("acts:act", 1, [folder])
    monkeypatch.setattr(processes.secrets, "compare_digest", lambda one, other: False)
    [failed] = acts.map([("length", "a")], 5.0)
    assert "nobody had asked for" in str(failed)
    monkeypatch.undo()
    assert acts.map([("length", "a")], 5.0) == [1]


def test_what_an_answer_does_to_its_verifier_is_no_excuse(acts):
    """The stored answer tells whether the verifier itself is at fault."""
    calls = [("spin",), ("fail",), ("leave", 0), ("memory",), ("nan",), ("jax",), ("length", "abc"), ("spin",),
             ("fail",), ("nan",)]
    stored = [("length", "")] * 7 + [("spin",), ("fail",), ("nan",)]
    values = acts.verdicts(calls, stored, 0.3)
    assert values[:7] == [0.0] * 6 + [3.0]
    assert [type(value) for value in values[7:]] == [TimeoutError, VerifierError, VerifierError]


def test_slow_rows_wait_until_all_others_had_a_turn(acts, monkeypatch):
    monkeypatch.setattr(processes, "FIRST_SECONDS", 0.1)
    calls = [("spin",)] * 6 + [("length", "a" * n) for n in range(3)]
    with on_clock(Clock(5.0)):
        values = acts.verdicts(calls, [("length", "")] * 9, 60.0)
    assert values[6:] == [0, 1, 2]
    assert all(isinstance(value, NotReachedError) for value in values[:6])


def test_when_the_time_of_the_reward_is_over_what_is_done_counts(acts):
    acts.map([("length", "")], 5.0)
    with on_clock(Clock(0.9)):
        values = acts.map([("sleep", 0.3)] * 8, 5.0)
        assert -0.5 < time_left() < 0.1
    assert values[0] == 0.3
    assert isinstance(values[-1], NotReachedError)
    assert "not reached" in str(values[-1])
    assert time_left() == float("inf")
    assert acts.map([("length", "a")], 5.0) == [1]


def test_what_is_given_up_early_is_taken_back(acts):
    acts.map([("length", "")], 5.0)
    given_up = threading.Event()
    threading.Timer(0.2, given_up.set).start()
    with on_clock(Clock(60.0, given_up.is_set)):
        values = acts.map([("sleep", 0.4)] * 50, 5.0)
        assert time_left() < 0
    assert sum(isinstance(value, NotReachedError) for value in values) > 40
    assert acts.map([("length", "a")], 5.0) == [1], "and nothing of it is still waiting"


def test_rows_under_way_end_where_their_batch_is_given_up():
    given_up, begun, ended = threading.Event(), [], []

    def judge(row, turn):
        begun.append(row)
        turn.begin(60.0)
        if len(begun) == 2:
            given_up.set()
        while turn.left() > 0:
            time.sleep(0.01)
        ended.append(row)
        turn.check()

    with on_clock(Clock(60.0, given_up.is_set)):
        outcomes = in_turns(judge, range(20), 60.0, workers=2)
    assert len(begun) == len(ended) == 2
    assert {type(outcome) for outcome in outcomes.values()} == {NotReachedError}


def test_a_machine_that_gives_no_time_makes_nothing_wrong(folder, monkeypatch):
    """A child that sleeps stands for one that does not get the CPU."""
    monkeypatch.setattr(processes, "START_SECONDS", 0.1)
    [stalled] = Pool("acts:act", 1, [folder]).verdicts([("sleep", 60)], [("length", "")], 0.1)
    assert isinstance(stalled, NotReachedError)
    assert "did not get its 0.1 s" in str(stalled)


def test_the_pool_outlives_its_processes(folder):
    acts = Pool("acts:act", 1, [folder])
    assert acts.map([("length", "ab")], 5.0) == [2]
    [process] = [each for each in processes._started if each.serves is acts]
    process._popen.kill()
    process._popen.wait()
    assert acts.map([("length", "ab")], 5.0) == [2]


def test_several_threads_share_a_pool(folder):
    assert Pool("acts:act", 2, [folder]).map([("sleep", 0.05)] * 6 + [("length", "a")] * 2, 5.0) == [0.05] * 6 + [1] * 2


def test_what_cannot_be_imported_is_told():
    values = Pool("no.such.module:function", 1).map([(1,), (2,)], 5.0)
    assert ["cannot be imported: ModuleNotFoundError" in str(value) for value in values] == [True, True]


def test_without_a_sandbox_a_call_is_bounded_too(folder):
    acts = Pool("acts:act", 1, [folder], unsafe=True)
    values = acts.verdicts([("length", "abc"), ("spin",), ("remember", 1), ("count",)], [("length", "")] * 4, 0.3)
    assert values == [3, 0.0, 1, 0]


def test_processes_are_bare_and_die_with_a_killed_trainer(tmp_path, folder):
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "fake_jax.py").write_text("")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    trainer = subprocess.Popen([sys.executable, "-m", "trainer", folder + "/."], env=environment, text=True,
                               stdout=subprocess.PIPE)
    try:
        assert trainer.stdout.readline() == "loaded\n"
        assert running(folder + "/.")
    finally:
        trainer.kill()
        trainer.wait()
        trainer.stdout.close()
    deadline = time.monotonic() + 8
    while left := running(folder + "/."):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.parametrize(("files", "expected"), [
    ({}, None), ({"cpu.max": "max 100000"}, None), ({"cpu.max": "100000 100000"}, 1), ({"cpu.max": "50000 100000"}, 1),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1)])
def test_cores_are_counted_by_the_quota_of_the_group(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpus(tmp_path) == (expected or len(os.sched_getaffinity(0)))
