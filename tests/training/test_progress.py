"""What a run shows of its steps and evaluations, on a terminal and elsewhere."""

import io
import re

import pytest
from rich.console import Console

import training.progress as progress

VALUES = {"loss": 1.0, "tokens_per_second": 10.0}


def printed_steps(capsys, monkeypatch, steps, seconds):
    """Which of a run's steps are printed, each of which takes so many seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.TrainingProgress(0, steps)
    for step in range(1, steps + 1):
        now[0] += seconds
        shown.step(step, VALUES)
    return [int(line.split()[1].partition("/")[0]) for line in capsys.readouterr().err.splitlines()]


def test_a_fast_run_prints_its_first_step_and_twenty_lines(capsys, monkeypatch):
    assert printed_steps(capsys, monkeypatch, 200, 0.01) == [1, *range(10, 201, 10)]


def test_a_slow_run_prints_a_line_every_minute(capsys, monkeypatch):
    assert printed_steps(capsys, monkeypatch, 1000, 7.0)[:4] == [1, 10, 19, 28]


@pytest.fixture
def terminal(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=file, force_terminal=True, width=80))
    return lambda: re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", file.getvalue())


def test_on_a_terminal_lines_of_steps_stay_in_sight(terminal):
    with progress.TrainingProgress(0, 40) as shown:
        for step in range(1, 41):
            shown.step(step, VALUES)
    lines = {int(number) for number in re.findall(r"step (\d+)/40  loss 1.0000", terminal())}
    assert {1, 20, 40} <= lines


def test_held_out_figures_are_a_table_with_those_before(terminal):
    with progress.TrainingProgress(0, 40) as shown:
        shown.note(0, {"eval/loss": 2.0, "eval/[odd]": 1.0})
        shown.note(4, {"eval/loss": 1.5, "eval/new": 3.0})
    text = terminal()
    assert re.search(r"\[odd\] +1\.0000", text)
    assert re.search(r"step 4 +step 0 +change", text)
    assert re.search(r"loss +1\.5000 +2\.0000 +-0\.5000", text)
    assert re.search(r"new +3\.0000", text)


def test_elsewhere_they_are_a_line(capsys):
    shown = progress.TrainingProgress(0, 40)
    shown.note(4, {"eval/loss": 1.5, "eval/[odd]": 3.0} | {f"eval/{name * 9}": 0.0 for name in "abcdefgh"})
    line = capsys.readouterr().err
    assert line.startswith("step 4: eval loss 1.5000  [odd] 3.0000  aaaaaaaaa 0.0000")
    assert line.count("\n") == 1  # however long
