"""docs/new_objective.md does what it says: its files are written out, its test is run, its command trains."""

import json
import re
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "new_objective.md").read_text()
TINY = Path(__file__).parents[1] / "fixtures" / "families" / "smollm2"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The page's Python files, by name, in a folder that is imported from."""
    found = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
    for name, text in found.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in found:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return found


def arguments_of(command):
    parts = re.findall(r'"[^"]*"|[^\s\\]+', command.replace("smollm2-135m-instruct", str(TINY)))
    return [part.strip('"') for part in parts]


def losses(run):
    return [json.loads(line)["loss"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_pages_weights_count(files, tmp_path, monkeypatch):
    """Packed or not; and a row of weight 0 is as good as absent."""
    from cli.command import run
    from scripts import sft

    [command] = re.findall(r"python -m scripts\.sft (.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)

    def train(name, rows, *more):
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = [*arguments_of(command), "--max-steps", "2", "--batch-size", "2", "--output-dir", name, *more]
        monkeypatch.setattr(sys, "argv", ["sft", *given])
        run(sft.main, sft.Config, sft.DESCRIPTION)
        return losses(name)

    whole = ("--packing", "none", "--max-length", "8")
    rows = [{"tokens": [1, 2, 3, 4], "weight": 2.0}, {"tokens": [5, 6, 7, 8], "weight": 0}]
    found = train("one", rows, *whole)
    assert found == pytest.approx(train("other", [rows[0], rows[1] | {"tokens": [9] * 4}], *whole), rel=1e-5)
    assert found[0] != pytest.approx(train("flat", [row | {"weight": 1} for row in rows], *whole)[0], rel=1e-3)
    packed = train("packed", [rows[0]] * 4, "--max-length", "8")
    assert packed[0] == pytest.approx(found[0], rel=1e-5)
    with pytest.raises(SystemExit):
        train("none", [{"tokens": [1, 2]}])
    assert not Path("none").exists()


def test_the_pages_test_stands_where_eight_devices_are_simulated(files):
    [path] = re.findall(r"`python -m pytest (\S+)`", PAGE)
    assert Path(path).stem in files
    assert Path(__file__).parents[1] / "conftest.py" in [
        folder / "conftest.py" for folder in (Path(__file__).parents[2] / path).parents]


@pytest.mark.slow
def test_the_pages_test_passes_and_can_fail(files, tmp_path):
    space = {}
    exec(compile(files["test_chipo"], "test_chipo.py", "exec"), space)
    tests = [value for name, value in space.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    mean = space["chipo"]
    space["chipo"] = lambda scores, batch: mean(scores, batch)._replace(total=mean(scores, batch).total / 4)
    with pytest.raises(AssertionError):
        space["test_a_policy_that_is_its_reference_pays_log_2"]()


def test_the_pages_command_trains(files, tmp_path, monkeypatch):
    from cli.command import run
    from scripts import dpo

    [command] = re.findall(r"python -m scripts\.dpo (.*?)```", PAGE, re.DOTALL)
    rows = [{"chosen_tokens": [1, 2, 3, first], "rejected_tokens": [1, 2, 4]} for first in range(5, 9)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dpo", *arguments_of(command), "--max-steps", "2"])
    run(dpo.main, dpo.Config, dpo.DESCRIPTION)
    lines = [json.loads(line) for line in Path("runs/chipo/metrics.jsonl").read_text().splitlines()]
    assert abs(lines[0]["loss"] - 0.6931) < 1e-3
    assert lines[1]["loss"] != lines[0]["loss"]
    assert "chipo:chipo(beta=0.05)" in Path("runs/chipo/config.yaml").read_text()
