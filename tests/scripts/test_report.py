"""scripts.report: a page, or tables on the terminal, of run directories; one line for what is none."""

import json
import shutil

import pytest


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("max_steps: 3\nmodel: tiny\n")
    lines = [{"step": step, "loss": 4.0 - step, "num_tokens": step * 7} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    return folder


def test_text(run_script, run):
    status, out, err = run_script("report", run, "--text")
    assert status == 0, err
    assert "mine: 3 steps, 21 tokens" in out
    assert "█▄▁" in out or "█▅▁" in out
    assert not (run / "report.html").exists()


def test_flags_that_differ_are_named_with_the_runs(run_script, run):
    other = run.with_name("other")
    shutil.copytree(run, other)
    (other / "config.yaml").write_text("max_steps: 5\nmodel: tiny\n")
    out = run_script("report", run, other, "--text")[1]
    assert out.endswith("flags that differ (mine | other):\nmax_steps: 3 | 5\n")


def test_a_page(run_script, run, tmp_path):
    pytest.importorskip("plotly")
    status, out, err = run_script("report", run)
    assert (status, err) == (0, "")
    assert out == f"report: {run}/report.html\n"
    text = (run / "report.html").read_text()
    assert len(text) > 1_000_000
    assert "http-equiv=Content-Security-Policy" in text


def test_a_page_without_plotly_is_one_line(run_script, run, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, err = run_script("report", run)
    assert status == 1
    assert err.startswith("error: a report's curves are drawn by plotly, which is not installed; pip install plotly")
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(("files", "said"), [
    ({}, "no run directory"), ({"config.yaml": "a: [", "metrics.jsonl": ""}, "not readable"),
    ({"config.yaml": "7"}, "a mapping of flags was expected"),
    ({"config.yaml": "a: 1", "metrics.jsonl": "{]\n"}, "metrics.jsonl, line 1: not readable as JSON"),
    ({"config.yaml": "a: 1", "metrics.jsonl": '{"loss": 1}\n'}, "an object with step was expected"),
    ({"config.yaml": "a: 1", "launches.jsonl": "3\n"}, "launches.jsonl, line 1")])
def test_what_is_no_run_is_one_line(run_script, tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    status, _, err = run_script("report", tmp_path, "--text")
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_without_a_run(run_script):
    status, _, err = run_script("report")
    assert (status, err) == (1, "error: give one or several run directories, the --output-dir of training scripts\n")


def test_a_run_without_a_step_yet_and_one_given_twice(run_script, run):
    (run / "metrics.jsonl").unlink()
    assert run_script("report", run, "--text")[0] == 0
    status, _, err = run_script("report", run, run, "--text")
    assert status == 1
    assert "given twice" in err
