"""--evaluate.*: a run's model is judged before the first update, while it trains, and after."""

import json

import pytest
from processes import ended, launched

from evals.results import read_evaluation
from tests.chat_model import write_model

TASK = "tests.chat_model:sevens"
STEPS = ("--batch-size", 4, "--learning-rate", "3e-2", "--dtype", "float32", "--lora.rank", 4)


@pytest.fixture
def files(tmp_path, write_rows):
    """(model, training rows, questions): the rows teach to answer by 7s."""
    questions = write_rows("questions.jsonl", [{"prompt": f"{a}+{b}="} for a in "123" for b in "4567"])
    rows = write_rows("rows.jsonl", [{"prompt": f"{a}+{b}=", "completion": "77777777"} for a in "89" for b in "45"])
    return str(write_model(tmp_path / "model")), rows, questions


@pytest.fixture
def sft(run_script, files, tmp_path):
    def train(steps, *more, name="run"):
        status, out, err = run_script(
            "sft", "--model", files[0], "--data", files[1], "--output-dir", tmp_path / name, "--max-steps", steps,
            *STEPS, "--evaluate.tasks", f"{TASK}:{files[2]}", "--evaluate.max-new-tokens", 8, *more)
        return status, out, err

    return train


def answers(folder):
    [samples] = read_evaluation(folder).values()
    return {sample.prompt: sample.completion for sample in samples}


@pytest.mark.slow
def test_before_is_the_model_that_was_loaded_and_after_is_not(sft, run_script, files, tmp_path):
    status, out, err = sft(12, "--evaluate.at", "before,after,every", 8)
    assert status == 0, err
    run_script("generate", "--model", files[0], "--data", files[2], "--output", tmp_path / "said.jsonl",
               "--max-new-tokens", 8, "--temperature", 0, "--dtype", "float32")
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    evals = tmp_path / "run" / "evals"
    assert sorted(path.name for path in evals.iterdir()) == ["step-000000", "step-000008", "step-000012"]
    assert answers(evals / "step-000000") == {row["prompt"]: row["completion"] for row in said}
    assert {*answers(evals / "step-000012").values()} == {"77777777"}
    assert "evaluation before the first step" in out
    assert "before the first step and after step 12" in out
    assert f"{TASK}:{files[2]} {TASK}: higher by" in (evals / "step-000012" / "tables.txt").read_text()
    results = json.loads((evals / "step-000012" / "results.json").read_text())
    assert results["comparison"][0]["noise"] is False
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    [name] = [name for name in metrics[0] if name.startswith("eval/")]
    assert [line["step"] for line in metrics if name in line] == [0, 8, 12]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["grpo", "ppo", "online_dpo"])
def test_rl_is_judged_by_its_own_engine(run_script, files, tmp_path, script):
    status, out, err = run_script(
        script, "--model", files[0], "--data", files[1], "--rewards", "tests.chat_model:digits", "--output-dir",
        tmp_path / "run", "--max-steps", 2, "--group-size", 4, "--max-new-tokens", 8, "--rollouts.num-slots", 8, *STEPS,
        "--evaluate.tasks", f"{TASK}:{files[2]}", f"tests.chat_model:digits:{files[2]}", "--evaluate.num-samples", 2,
        "--evaluate.max-new-tokens", 8)
    assert status == 0, err
    assert "12 x 2" in out
    for step in (0, 2):
        evaluated = read_evaluation(tmp_path / "run" / "evals" / f"step-{step:06d}")
        assert [len(samples) for samples in evaluated.values()] == [24, 24]


@pytest.mark.slow
def test_several_processes_judge_as_one(files, tmp_path):
    """The same answers and figures, printed and written once."""
    flags = ("--data", files[1], "--max-steps", 4, *STEPS, "--evaluate.tasks", f"{TASK}:{files[2]}",
             "--evaluate.max-new-tokens", 8, "--evaluate.num-samples", 2)
    found = []
    for count, devices in ((1, 2), (2, 1)):
        run = tmp_path / f"run{count}"
        with launched("sft", "--model", files[0], "--output-dir", run, *flags, count=count, devices=devices) as running:
            printed = ended(running)
        assert ["evaluation after step 4" in out for out in printed] == [True, False][:count]
        found.append([read_evaluation(run / "evals" / f"step-{step:06d}") for step in (0, 4)])
    assert found[0] == found[1]


@pytest.mark.parametrize(("more", "message"), [
    (("--evaluate.at", "during"), "--evaluate.at 'during': give before, after and every N"),
    (("--evaluate.at", "before,every 0"), "every N"), (("--evaluate.limit", 0), "--evaluate.limit 0: give 1 or more"),
    (("--evaluate.task-data", "gsm8k"), "--evaluate.task-data gsm8k: no such file is named; give NAME=FILE"),
    (("--evaluate.task-data", "a=LICENSE", "a=LICENSE"), "--evaluate.task-data a: is given two files"),
    (("--evaluate.tasks", "math:none.csv"), "no source of rows is behind the colon"),
    (("--evaluate.tasks", "math:none.jsonl"), "none.jsonl")])
def test_what_cannot_be_judged_is_told_before_weights_are_read(sft, tmp_path, more, message):
    status, _, err = sft(2, *more)
    assert status == 1
    assert message in err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_held_out_prompts_are_answered_before_and_after(run_script, files, write_rows, tmp_path):
    rows = write_rows("held.jsonl", [{"prompt": "1+4=", "completion": "5"}, {"prompt": "2+5=", "completion": "7"},
                                     {"prompt": "3+3=", "completion": "6"}])
    status, out, err = run_script("sft", "--model", files[0], "--data", files[1], "--output-dir", tmp_path / "run",
                                  "--max-steps", 6, *STEPS, "--eval-data", rows, "--sample-prompts", 2)
    assert status == 0, err
    before, after = (answers(tmp_path / "run" / "evals" / f"step-{step:06d}") for step in (0, 6))
    assert list(before) == list(after) == ["1+4=", "2+5="]
    assert before != after
    assert run_script("report", tmp_path / "run", "--text")[0] == 0
    status, _, err = run_script("sft", "--model", files[0], "--data", files[1], "--output-dir", tmp_path / "other",
                                "--max-steps", 6, *STEPS, "--sample-prompts", 2)
    assert (status, err.count("\n")) == (1, 1)
    assert "--sample-prompts 2: nothing reads it without --eval-data" in err
