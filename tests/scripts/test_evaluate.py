"""scripts.evaluate on a tiny model: what it leaves, that it goes on, what it compares with and what it refuses."""

import json

import pytest
from chat_model import write_model

from files import only_one


@pytest.fixture
def evaluate(run_script, tmp_path, write_rows):
    write_model(tmp_path / "model")
    tasks = "chat_model:digits:" + write_rows("rows.jsonl", [{"prompt": text} for text in ("ab", "cd", "ef")])

    def run(output, *more, tasks=tasks, model=tmp_path / "model"):
        return run_script("evaluate", "--model", model, "--tasks", tasks, "--output-dir", tmp_path / output,
                          "--max-new-tokens", 4, *more)

    return run


def test_it_leaves_figures_and_answers_and_goes_on(evaluate, tmp_path, write_rows, monkeypatch):
    status, out, _ = evaluate("out")
    assert status == 0
    assert "chat_model:digits" in out
    said = (tmp_path / "out" / "responses.jsonl").read_text()
    assert len(said.splitlines()) == 3
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (figures,) = results["results"].values()
    assert figures["chat_model:digits_questions,none"] == 3
    assert len(results["config"]["weights"]) == 64

    monkeypatch.setattr("rollouts.engine.Engine.submit", None)  # nothing is answered again
    other = "chat_model:digits:" + write_rows("more.jsonl", [{"prompt": "ab"}])
    status, out, _ = evaluate("out", "--baseline", tmp_path / "out")
    assert status == 0
    assert "within noise" in out
    assert evaluate("out", tasks=other)[0] == 0
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["results"]) == 2
    assert (tmp_path / "out" / "responses.jsonl").read_text() == said
    status, _, err = evaluate("out", "--limit", 2)
    assert (status, err) == (1, f"error: --output-dir {tmp_path / 'out'} holds another evaluation (limit: none there, "
                                "2 now); choose another\n")


def test_a_folder_is_of_one_process_and_of_evaluations(evaluate, tmp_path):
    with only_one(tmp_path / "out"):
        status, _, err = evaluate("out")
    assert (status, err.count("\n")) == (1, 1)
    assert "is being written by another process" in err
    for text in ("", "[]", "{}", '{"config": 3}', "\ud800"):
        (tmp_path / "out" / "results.json").write_text(text, errors="surrogatepass")
        status, _, err = evaluate("out")
        assert (status, err.count("\n")) == (1, 1)
        assert "results.json: does not say of what evaluation it is" in err


def test_a_baseline_of_other_questions_is_refused_and_what_was_done_is_kept(evaluate, tmp_path):
    assert evaluate("first", "--limit", 2)[0] == 0
    status, _, err = evaluate("second", "--baseline", tmp_path / "first")
    assert status == 1
    assert "has 2 questions, this evaluation 3, and 2 are the same" in err
    assert (tmp_path / "second" / "results.json").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (("--num-samples", 2, "--temperature", 0), "would be the same answer each time"),
    (("--task-data", "gsm8k"), "give NAME=FILE or NAME:SPLIT=FILE"),
    (("--task-data", "gsm8k=setup.py"), "no such file is named"),
    (("--task-data", "a=LICENSE", "a=README.md"), "--task-data a: is given two files"),
    (("--baseline", "nowhere"), "no evaluation (samples_TASK.jsonl) is there"),
    (("--limit", 0), "--limit must be above 0"), (("--num-fewshot", -1), "--num-fewshot -1: give 0 or more"),
    (("--num-fewshot", 2), "--num-fewshot 2: is for tasks of lm-eval's")])
def test_bad_flags_are_one_line(evaluate, arguments, message):
    status, _, err = evaluate("out", *arguments)
    assert status == 1
    assert err.count("\n") == 1
    assert message in err


def test_what_is_missing_is_told_and_benchmarks_are_listed(run_script):
    assert run_script("evaluate", "--tasks", "gsm8k")[2] == "error: --model is missing; --help explains the flags\n"
    status, out, _ = run_script("evaluate", "--list")
    assert status == 0
    assert all(name in out for name in ("gsm8k", "humaneval+", "MIT", "hf:google/IFEval"))
