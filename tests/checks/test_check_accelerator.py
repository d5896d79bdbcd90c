"""The command: its flags, with and without tyro, what it refuses, and the whole of it on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.check_accelerator import Config, main, parse_plainly

ROOT = Path(__file__).parents[2]


def test_flags_are_read_without_tyro():
    assert parse_plainly([]) == Config()
    given = ["--json", "a.json", "--quick", "--parts", "scorer", "train step", "--max-minutes", "2"]
    expected = Config(json=Path("a.json"), quick=True, parts=("scorer", "train step"), max_minutes=2.0)
    assert parse_plainly(given) == expected


@pytest.mark.parametrize(("changed", "words"), [
    ({"parts": ("speed",)}, "--parts 'speed' is none of the table's; there are hardware, attention"),
    ({"max_minutes": 0.0}, "--max-minutes must be above 0"),
    ({"json": Path("nowhere/a.json")}, "--json nowhere/a.json: no file can be written there"),
    ({"json": ROOT}, "no file can be written there"),
    ({"foretold": ("plan.json",)}, "give CHECK=FILE")])
def test_bad_input_is_one_line(changed, words):
    from errors import InputError

    with pytest.raises(InputError, match=words):
        main(Config(**changed))


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(tmp_path):
    """Two minutes of one core; on two devices, so that the links are measured, too."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "scripts.check_accelerator", "--json", tmp_path / "found.json"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    statuses = {(each["part"], each["status"]) for each in found["verdicts"]}
    assert {part for part, status in statuses if status == "ok"} == {
        "hardware", "attention", "paged attention", "scorer", "train step", "sampling", "links", "training speed",
        "decoding speed", "lowering"}
    assert {status for _, status in statuses} == {"ok", "not run"}
    assert all(each["note"] for each in found["verdicts"])
