"""Verifiers in processes: bounded in time, replaced when they die, bare of jax, and gone with their trainer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewards.contract import given_seconds, time_left
from rewards.execution.processes import Pool, VerifierError

ACTS = """
import os, sys, time
def act(what, *arguments):
    print("noise that is no reply", flush=True)
    if what == "spin":
        while True: pass
    if what == "power":
        return len(str(9 ** 9 ** 9))
    return {"pid": os.getpid, "exit": os._exit, "sleep": lambda s: time.sleep(s) or s, "fail": lambda: 1 // 0,
            "jax": lambda: [name for name in ("jax", "__mp_main__") if name in sys.modules], "system": os.system,
            "write": lambda path: open(path, "w") and 1, "kill": os.kill, "length": len}[what](*arguments)
"""
TRAINER = """
import sys, threading, time
import fake_jax as jax
sys.modules["jax"] = jax
from rewards.execution.processes import Pool
if __name__ == "__main__":
    idle, busy = Pool("acts:act", 1), Pool("acts:act", 1)
    pids = [pool.map([("pid",)], 5.0)[0] for pool in (idle, busy)]
    threading.Thread(target=busy.map, args=([("spin",)], 2.0), daemon=True).start()
    time.sleep(0.3)
    print(*pids, *idle.map([("jax",)], 5.0)[0], flush=True)
    time.sleep(60)
"""


@pytest.fixture
def acts(tmp_path, monkeypatch):
    (tmp_path / "acts.py").write_text(ACTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Pool("acts:act", 1)


def test_values_stay_in_their_places(acts):
    values = acts.map([("length", "x" * n) for n in (3, 1_000_000, 0)] + [("fail",)], 5.0)
    assert values[:3] == [3, 1_000_000, 0]
    assert isinstance(values[3], VerifierError)
    assert "ZeroDivisionError" in str(values[3])
    assert acts.map([], 5.0) == []


@pytest.mark.parametrize("what", ["spin", "power"])  # a loop in Python, and one long operation in C
def test_a_verifier_that_hangs_costs_its_time_and_no_more(acts, what):
    acts.map([("pid",)], 5.0)
    started = time.monotonic()
    values = acts.map([("length", "abc"), (what,), ("length", "ab")], 0.5)
    assert time.monotonic() - started < 6
    assert (values[0], values[2]) == (3, 2)
    assert isinstance(values[1], TimeoutError)
    assert "0.5 s" in str(values[1])


def test_the_pool_outlives_its_processes(acts):
    [pid] = acts.map([("pid",)], 5.0)
    assert acts.map([("pid",)], 5.0) == [pid]
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    [other] = acts.map([("pid",)], 5.0)
    assert other != pid
    ended, value = acts.map([("exit", 3), ("length", "ab")], 5.0)
    assert isinstance(ended, VerifierError)
    assert "ended with status 3" in str(ended)
    assert value == 2


def test_several_threads_share_a_pool(tmp_path, acts):
    pool = Pool("acts:act", 2)
    values = pool.map([("sleep", 0.05)] * 6 + [("pid",)] * 2, 5.0)
    assert values[:6] == [0.05] * 6


def test_what_cannot_be_imported_is_told():
    values = Pool("no.such.module:function", 1).map([(1,), (2,)], 5.0)
    assert ["cannot be imported: InputError" in str(value) for value in values] == [True, True]


def test_when_the_time_of_the_reward_is_over_what_is_done_counts(acts):
    acts.map([("pid",)], 5.0)
    with given_seconds(0.9):
        values = acts.map([("sleep", 0.3)] * 8, 5.0)
        assert -0.5 < time_left() < 0.1
    assert values[0] == 0.3
    assert isinstance(values[-1], TimeoutError)
    assert "not reached" in str(values[-1])
    assert time_left() == float("inf")
    started = time.monotonic()
    assert acts.map([("length", "a")], 5.0) == [1]  # those that nobody waits for were taken back
    assert time.monotonic() - started < 0.9


def test_what_a_model_wrote_gets_neither_commands_nor_files_nor_signals(tmp_path, acts):
    calls = [("system", f"touch {tmp_path}/made"), ("write", str(tmp_path / "made")), ("kill", os.getpid(), 0)]
    assert ["PermissionError" in str(value) for value in acts.map(calls, 5.0)] == [True] * 3
    assert not (tmp_path / "made").exists()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_are_bare_and_die_with_a_killed_trainer(tmp_path):
    (tmp_path / "acts.py").write_text(ACTS)
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "fake_jax.py").write_text("")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    trainer = subprocess.Popen([sys.executable, "-m", "trainer"], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        pids = trainer.stdout.readline().split()
    finally:
        trainer.kill()
        trainer.wait()
        trainer.stdout.close()
    assert len(pids) == 2, "the processes imported the training script"
    deadline = time.monotonic() + 8
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)
