"""scripts.evaluate --model RUN@all: every checkpoint of a run, each against the first."""

import json

import pytest

from evals.results import read_evaluation
from tests.chat_model import write_model

TASK = "tests.chat_model:digits"


@pytest.mark.slow
def test_all_checkpoints_of_a_run(run_script, write_rows, tmp_path):
    questions = write_rows("questions.jsonl", [{"prompt": f"{a}+{b}="} for a in "123" for b in "4567"])
    rows = write_rows("rows.jsonl", [{"prompt": f"{a}+{b}=", "completion": "77777777"} for a in "89" for b in "45"])
    model, run = write_model(tmp_path / "model"), tmp_path / "run"
    status, _, err = run_script(
        "sft", "--model", model, "--data", rows, "--output-dir", run, "--max-steps", 12, "--save-every", 6,
        "--batch-size", 4, "--learning-rate", "3e-2", "--dtype", "float32", "--lora.rank", 4, "--evaluate.tasks",
        f"{TASK}:{questions}", "--evaluate.max-new-tokens", 8, "--evaluate.at", "after")
    assert status == 0, err
    arguments = ("--tasks", f"{TASK}:{questions}", "--max-new-tokens", 8, "--dtype", "float32")
    status, out, err = run_script("evaluate", "--model", f"{run}@all", "--output-dir", tmp_path / "evals", *arguments)
    assert status == 0, err
    assert sorted(path.name for path in (tmp_path / "evals").iterdir()) == ["step-000006", "step-000012"]
    assert f"all checkpoints of {run}" in " ".join(out.split())
    during, after = (read_evaluation(folder / "step-000012") for folder in (run / "evals", tmp_path / "evals"))
    assert during == after  # the run's own evaluation, and one of what it saved
    results = json.loads((tmp_path / "evals" / "step-000006" / "results.json").read_text())
    assert results["config"]["model"] == f"{run}@6"
