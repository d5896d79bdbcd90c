"""Lines of a run whose output is no terminal."""

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
