"""The lock of a run directory: one run at a time, known by name, and gone with its process."""

import json
import os
import signal
import subprocess
import sys

import pytest

from errors import InputError
from training.holding import LOCK, held, wait_until_free

HOLDER = """
import multiprocessing, os, sys, time
from pathlib import Path
from training.holding import held
with held(Path(sys.argv[1])):
    child = os.fork()  # as a worker that outlives its parent does
    if not child:
        time.sleep(60)
    print(child, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """(a run directory, the process that has it, its child)."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield tmp_path / "run", process
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.wait()


def test_a_second_run_says_who_has_the_directory(holder, capsys):
    run, process = holder
    for take in (wait_until_free, lambda run, patience: held(run, patience).__enter__()):
        with pytest.raises(InputError, match=rf"by process {process.pid} on \S+ since .*; wait for it") as e:
            take(run, 0.1)
        assert "\n" not in str(e.value)
        assert capsys.readouterr().err.count("waiting up to 0 s") == 1
    assert json.loads((run / LOCK).read_text())["pid"] == process.pid


def test_a_run_waits_for_its_dying_predecessor(holder):
    run, process = holder
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {process.pid}"])
    with held(run, 20.0):
        assert process.wait() == -signal.SIGKILL
        assert json.loads((run / LOCK).read_text())["pid"] == os.getpid()
    assert (run / LOCK).read_text() == ""


def test_waiting_makes_nothing(tmp_path):
    wait_until_free(tmp_path / "run", 0.0)
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="cannot be written"), held(tmp_path / "run"):
        pass
