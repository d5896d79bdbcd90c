"""Runs that are stopped by a signal, a full disk, a folder they may not write to or a bad row; each goes on exactly."""

import json
import os
import re
import resource
import signal
import sys
import time

import grain
import pytest
from same_run import (
    WAIT,
    assert_same_run,
    ended,
    finish,
    flags,
    start,
    steps_done,
    timeless,
    unfinished,
    wait_until,
    write_rows,
)

from cli import command, experiment
from scripts import sft
from training.checkpoints import finished_steps
from training.preemption import NOTE

STEPS = 60


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", 22)


@pytest.fixture
def whole(tmp_path, rows):
    """A run that nothing befell."""
    finish(flags(tmp_path / "whole", rows, STEPS))
    return tmp_path / "whole"


def saved(run):
    return finished_steps(run / "checkpoints")


def stopped_at(line):
    """The step that the one line of a run that was stopped names."""
    return int(re.fullmatch(rf"stopped by (?:SIGTERM|Ctrl-C) after step (\d+) of {STEPS}, which is saved; the same "
                            rf"command goes on from there", line)[1])


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--workers", 1)], ids=["alone", "workers"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_that_is_saved(tmp_path, rows, whole, more, number):
    """It goes to the workers, too, as Slurm's does, and a terminal's."""
    run = tmp_path / "run"
    arguments = flags(run, rows, STEPS, *more)
    done, process = steps_done(run), start(arguments)
    wait_until(lambda: done() >= 8, process)
    os.killpg(process.pid, number)
    status, [*note, line] = ended(process)
    assert note == (NOTE.splitlines() if number == signal.SIGINT else [])
    step = stopped_at(line)
    assert status == 0
    assert 8 <= step < STEPS
    assert saved(run)[-1] == step == timeless(run)[-1]["step"]
    assert not unfinished(run)
    finish(arguments)
    assert_same_run(run, whole, STEPS)


@pytest.mark.slow
def test_sigterm_before_the_first_step(tmp_path, rows, whole):
    """While it starts, the signal ends the process; once the loop is entered, which compiles, after the first step."""
    run = tmp_path / "run"
    arguments = flags(run, rows, STEPS)
    for reached in (lambda: True, lambda: run.exists(), lambda: (run / "metrics.jsonl").exists()):
        process = start(arguments)
        wait_until(reached, process)
        time.sleep(0.3)
        process.terminate()
        status, lines = ended(process)
        assert (status, lines) == (-signal.SIGTERM, []) or (status, [stopped_at(lines[0])]) == (0, saved(run)[-1:])
        assert not unfinished(run)
    assert saved(run)  # the last one got there
    finish(arguments)
    assert_same_run(run, whole, STEPS)


def size_limit(run):
    """A limit of file sizes that metrics.jsonl keeps and a checkpoint does not."""
    largest = max(path.stat().st_size for path in (run / "checkpoints").rglob("*") if path.is_file())
    return largest // 3


def no_room(process, run):
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size_limit(run), resource.RLIM_INFINITY))


def no_room_for_metrics(process, run):
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


def no_permission(_, run):
    (run / "checkpoints").chmod(0o555)


WITHOUT_THE_RIGHTS_OF_ROOT = "import ctypes; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)"
"""PR_CAPBSET_DROP, CAP_DAC_OVERRIDE: root would write where no one may"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits another process")
@pytest.mark.parametrize(("befall", "reasons"), [
    (no_room, r"checkpoints: a checkpoint could not be written \(File too large\); the last good one is of step (\d+)"),
    (no_room_for_metrics, r"(?:metrics.jsonl: cannot|checkpoints: a checkpoint could not) be written \(File too large\)"
                          r"(?:; the last good one is of step \d+)?"),
    (no_permission, r"checkpoints: a checkpoint could not be written \(Permission denied\); the last good one is of "
                    r"step (\d+)")])
def test_what_cannot_be_written_ends_a_run_that_goes_on_later(tmp_path, rows, whole, befall, reasons):
    run = tmp_path / "run"
    arguments = flags(run, rows, STEPS)
    process = start(arguments, first=WITHOUT_THE_RIGHTS_OF_ROOT)
    wait_until(lambda: saved(run), process)
    befall(process, run)
    status, lines = ended(process)
    (run / "checkpoints").chmod(0o755)
    assert status == 1
    assert len(lines) == 1, lines
    [line] = lines
    found = re.fullmatch(rf"error: {run}/{reasons}; make room or mend the permissions, and give the same command again",
                         line)
    assert found, line
    assert 0 < saved(run)[-1] < STEPS
    assert not found.groups() or int(found[1]) == saved(run)[-1]
    finish(arguments)
    assert_same_run(run, whole, STEPS)


def sft_here(monkeypatch, capsys, arguments):
    """scripts.sft in this process: (exit status, lines on standard error but for those of the progress)."""
    monkeypatch.setattr(sys, "argv", ["sft", *arguments])
    status = 0
    try:
        command.run(sft.main, sft.Config, sft.DESCRIPTION)
    except SystemExit as stop:
        status = stop.code
    return status, [line for line in capsys.readouterr().err.splitlines() if not line.startswith("step ")]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_found_late_ends_a_run_that_is_saved(tmp_path, monkeypatch, capsys, workers):
    monkeypatch.setattr(experiment, "CHECKED", 4)  # what is found early leaves no run at all
    rows = write_rows(tmp_path / "rows.jsonl", 200)
    lines = rows.read_text().splitlines()
    late = grain.MapDataset.range(200).seed(0).shuffle()[100]
    lines[late] = json.dumps({"tokens": ["a", "b"]})
    rows.write_text("\n".join(lines) + "\n")
    run = tmp_path / "run"
    arguments = flags(run, rows, STEPS, "--save-every", 0, "--workers", workers)
    for _ in range(2):  # it stands in the way until something is done about it
        status, [line] = sft_here(monkeypatch, capsys, arguments)
        assert status == 1
        assert line.startswith(f"error: {rows}:{late + 1}: ")
        [step] = saved(run)  # saved for this cause alone
        assert timeless(run)[-1]["step"] == step > 0
    assert sft_here(monkeypatch, capsys, [*arguments, "--bad-rows", "skip"]) == (0, [])
    other = flags(tmp_path / "other", rows, STEPS, "--save-every", 0, "--bad-rows", "skip")
    assert sft_here(monkeypatch, capsys, other) == (0, [])
    assert_same_run(run, tmp_path / "other", STEPS)
    assert timeless(run)[-1]["rows_skipped"] > 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_run_that_is_killed_alone(tmp_path, rows):
    run = tmp_path / "run"
    done, process = steps_done(run), start(flags(run, rows, 100_000, "--workers", 2))
    wait_until(lambda: done() >= 8, process)
    process.kill()
    process.communicate(timeout=WAIT)  # returns when none of them holds the pipe any more
