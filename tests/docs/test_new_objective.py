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
    arguments = re.findall(r'"[^"]*"|[^\s\\]+', command.replace("smollm2-135m-instruct", str(TINY)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dpo", *(part.strip('"') for part in arguments), "--max-steps", "2"])
    run(dpo.main, dpo.Config, dpo.DESCRIPTION)
    lines = [json.loads(line) for line in Path("runs/chipo/metrics.jsonl").read_text().splitlines()]
    assert abs(lines[0]["loss"] - 0.6931) < 1e-3
    assert lines[1]["loss"] != lines[0]["loss"]
    assert "chipo:chipo(beta=0.05)" in Path("runs/chipo/config.yaml").read_text()
