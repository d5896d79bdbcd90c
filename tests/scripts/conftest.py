"""Rows, a tiny model, and scripts run in this process."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

TINY = Path(__file__).parents[1] / "fixtures" / "families" / "smollm2"


@pytest.fixture
def tiny_model():
    return str(TINY)


@pytest.fixture
def write_rows(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


@pytest.fixture
def token_rows(write_rows):
    random = np.random.default_rng(0)
    return write_rows("rows.jsonl", [{"tokens": random.integers(0, 128, length).tolist()}
                                     for length in random.integers(8, 40, 24)])


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Runs scripts.NAME with arguments; gives (exit status, standard output, standard error)."""

    def run(name, *arguments):
        from cli import command

        module = importlib.import_module(f"scripts.{name}")
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        status = 0
        try:
            command.run(module.main, module.Config, module.DESCRIPTION)
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
