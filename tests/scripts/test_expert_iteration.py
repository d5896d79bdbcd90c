"""make curate: its recipes are ones that scripts.curate and scripts.sft take, and rounds go on from each other."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from cli.parsing import parse_recipe
from curation.recipe import parse_recipe as parse_stages
from curation.recipe import read_recipe
from data.sources import open_source
from errors import InputError
from evals.results import write_evaluation
from evals.samples import Sample
from scripts import expert_iteration, sft
from scripts.expert_iteration import PROBLEMS, STAGES, TRAINING, Config, write_stages


def test_the_recipes_are_read_and_agree_on_what_is_held_out():
    pytest.importorskip("reasoning_gym")
    stages = {step.name: step.keys for step in read_recipe(Path(STAGES)).steps}
    tasks = parse_recipe(sft.Config, TRAINING).evaluate.names
    assert [task.partition(":gym:")[2] for task in tasks] == [
        name.removeprefix("gym:") for name in stages["contamination"]["against"]]
    assert [len(open_source(each)) for each in PROBLEMS] == [400, 400]
    assert {each.source for each in PROBLEMS}.isdisjoint(stages["contamination"]["against"])


def test_a_recipe_of_the_next_round_has_the_last_rounds_model(tmp_path):
    first = yaml.safe_load(write_stages(tmp_path / "a", str(STAGES), None, 3).read_text())
    second = yaml.safe_load(write_stages(tmp_path / "b", str(STAGES), "runs/x", 3).read_text())
    assert [step.keys["seed"] for step in parse_stages(first).steps if step.name == "sample"] == [3]
    assert [step.keys["model"] for step in parse_stages(second).steps if step.name == "sample"] == ["runs/x"]
    for text in ("stages: [exact_duplicates]", "stages: [sample]", "stages: [{sample: [1]}]", "[]", "stages: 3"):
        (tmp_path / "none.yaml").write_text(text)
        with pytest.raises(InputError, match="no recipe with a stage sample"):
            write_stages(tmp_path / "c", str(tmp_path / "none.yaml"), None, 0)
    (tmp_path / "short.yaml").write_text("stages: ['my.sample:r', sample: ]")
    assert "seed: 5" in write_stages(tmp_path / "d", str(tmp_path / "short.yaml"), None, 5).read_text()


def test_rounds_train_on_what_the_last_model_answered(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(expert_iteration.curate, "main", lambda config: done.append(
        ("curate", [stage["sample"]["model"] for stage in yaml.safe_load(Path(config.stages).read_text())["stages"]
                    if "sample" in stage], config.output_dir)))
    monkeypatch.setattr(expert_iteration.sft, "main", lambda config: done.append(
        ("sft", config.model, [each.source for each in config.data], config.output_dir)))
    monkeypatch.setattr(expert_iteration, "plot", lambda folder: None)
    expert_iteration.main(dataclasses.replace(Config(), output_dir=str(tmp_path), rounds=2))
    base = "smollm2-135m-instruct"
    assert done == [("curate", [base], f"{tmp_path}/round-1/data"),
                    ("sft", base, [f"{tmp_path}/round-1/data/kept.jsonl"], f"{tmp_path}/round-1/run"),
                    ("curate", [f"{tmp_path}/round-1/run"], f"{tmp_path}/round-2/data"),
                    ("sft", base, [f"{tmp_path}/round-2/data/kept.jsonl"], f"{tmp_path}/round-2/run")]


def test_the_picture_has_rows_by_stage_and_answers_before_and_after(tmp_path):
    stages = [{"stage": "sample", "read": {"a": 2}, "kept": {"a": 16}},
              {"stage": "best_of", "read": {}, "kept": {"a": 2}}]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/counts.json").write_text(json.dumps({"stages": stages}))
    for step, right in ((0, 1.0), (40, 3.0)):
        samples = [Sample("gym_exact:sums:x", f"q{number}", f"q{number}", 0, "p", "c", "stop",
                          {"exact": float(number < right)}, "") for number in range(4)]
        write_evaluation(tmp_path / f"run/evals/step-{step:06d}", {"gym_exact:sums:x": samples}, {})
    expert_iteration.plot(tmp_path)
    assert (tmp_path / "report.png").stat().st_size > 5000
