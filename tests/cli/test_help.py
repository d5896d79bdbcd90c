"""--help: what must be given stands first, each flag has its whole text, and no script loads jax to print it."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.help import ORDER, ordered_fields, text_of
from cli.parsing import parse
from cli.values import default, walk

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted({path.stem for path in (ROOT / "scripts").glob("*.py")} - {"__init__", "cli", "plan"})


def config(script):
    return importlib.import_module(f"scripts.{script}").Config


@pytest.fixture
def help_of(capsys, monkeypatch):
    def read(script):
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit):
            parse(config(script), ["--help"], "")
        return capsys.readouterr().out

    return read


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_must_be_given_stands_first_and_groups_last(script):
    values = [default(field) for field in ordered_fields(config(script))]
    kinds = [0 if value is dataclasses.MISSING else 2 if dataclasses.is_dataclass(value) else 1 for value in values]
    assert kinds == sorted(kinds)


def test_help_has_that_order(help_of):
    text = help_of("grpo")
    flags = ("model", "data", "rewards", "output-dir", "seed", "dtype", "lora.rank", "mesh.data", "hosts.coordinator")
    places = [re.search(rf"(?m)^[^\w-]*--{re.escape(flag)}\b", text).start() for flag in flags]
    assert places == sorted(places)
    assert text.count("(required)") == 5


def test_the_order_names_flags_that_there_are():
    known = {field.name for script in SCRIPTS for field in ordered_fields(config(script))}
    assert set(ORDER) <= known


def test_a_text_is_one_paragraph_and_that_of_the_last_class_that_declares_the_flag():
    assert "\n" not in text_of(config("sft"), "eval_data")
    assert text_of(config("sft"), "eval_data").endswith("after the last.")
    assert text_of(config("reward"), "model").startswith("The reward model begins as this one")
    assert not text_of(config("sft"), "none")


def test_flags_mean_the_same_in_any_order():
    flags = ["--model", "m", "--data", "d", "--output-dir", "o", "--max-steps", "3", "--lora.rank", "4"]
    made = parse(config("sft"), flags, "")
    assert type(made) is config("sft")
    assert {name for name, flag in walk(made).items() if flag.value != default(flag.field)} == {
        "model", "data", "output_dir", "max_steps", "lora.rank"}


def test_no_script_loads_jax_for_its_help():
    program = ("import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module('scripts.' + name)\n"
               "sys.exit(', '.join({'jax', 'flax', 'optax', 'torch', 'datasets', 'tensorflow'} & sys.modules.keys()))")
    done = subprocess.run([sys.executable, "-c", program, *SCRIPTS], cwd=ROOT, text=True, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert (done.stderr, done.returncode) == ("\n", 1) or done.returncode == 0, done.stderr


def test_a_script_runs_from_any_folder_by_its_path(tmp_path):
    (tmp_path / "errors.py").write_text("raise SystemExit('the wrong folder')\n")
    done = subprocess.run([sys.executable, ROOT / "scripts" / "sft.py", "--model", "m"], cwd=tmp_path, text=True,
                          capture_output=True, check=False)
    assert done.stderr.startswith("error: Missing from ")
    program = f"import sys; sys.path[0] = {str(ROOT / 'scripts')!r}; import cli.command, scripts, sys; print(*sys.path)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.stdout.split()[0] == str(ROOT), done.stderr
    assert str(ROOT / "scripts") not in done.stdout.split()
    assert done.stdout.split()[-1] == str(tmp_path)  # where functions of one's own are
