"""The scripts on a tiny model, from rows to exported weights."""

import json
from pathlib import Path

import numpy as np
import pytest

LORA = ("--lora.rank", 4, "--lora.alpha", 8)
STEPS = ("--max-steps", 4, "--batch-size", 8, "--learning-rate", "1e-2", "--dtype", "float32")


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def logps(path):
    return [np.asarray(row["logps"]) for row in lines(path)]


def assert_close(one, other, tolerance=1e-4):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


@pytest.fixture
def sft(run_script, tiny_model, token_rows, tmp_path):
    def train(name, *more):
        run = tmp_path / name
        status, _, err = run_script("sft", "--model", tiny_model, "--data", token_rows, "--output-dir", run,
                                    *STEPS, *more)
        assert status == 0, err
        return run

    return train


@pytest.fixture
def score(run_script, token_rows, tmp_path):
    def scores(model, name):
        status, _, err = run_script("score", "--model", model, "--data", token_rows, "--output", tmp_path / name,
                                    "--dtype", "float32")
        assert status == 0, err
        return logps(tmp_path / name)

    return scores


@pytest.mark.parametrize("more", [pytest.param((), id="full", marks=pytest.mark.slow), pytest.param(LORA, id="lora")])
def test_train_score_export(sft, score, run_script, tiny_model, tmp_path, more):
    run = sft("run", *more)
    metrics = lines(run / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert {"loss", "grad_norm", "learning_rate", "num_tokens", "tokens_per_second"} <= set(metrics[0])
    [launch] = lines(run / "launches.jsonl")
    assert launch["command"].startswith("python ")
    assert {"jax", "devices", "commit", "time"} <= launch.keys()
    before, after = score(tiny_model, "before.jsonl"), score(run, "after.jsonl")
    assert np.mean(np.concatenate(after)) > np.mean(np.concatenate(before)) + 0.01

    status, _, err = run_script("export", "--model", run, "--output", tmp_path / "merged")
    assert status == 0, err
    assert_close(score(tmp_path / "merged", "merged.jsonl"), after)
    if more:
        run_script("export", "--model", run, "--output", tmp_path / "adapter", "--format", "adapter")
        assert_close(score(tmp_path / "adapter", "adapter.jsonl"), after)


@pytest.mark.slow
def test_an_export_between_base_and_run(sft, score, run_script, tiny_model, tmp_path):
    def scores(scale, *more):
        folder = tmp_path / f"{scale}{len(more)}"
        status, _, err = run_script("export", "--model", run, "--output", folder, "--lora-scale", scale, *more)
        assert status == 0, err
        return score(folder, f"{folder.name}.jsonl")

    run = sft("run", *LORA)
    assert_close(scores(0), score(tiny_model, "base.jsonl"))
    half, whole = scores(0.5), score(run, "run.jsonl")
    assert_close(scores(0.5, "--format", "adapter"), half)
    assert max(np.abs(np.concatenate(half) - np.concatenate(whole))) > 1e-3


@pytest.mark.slow
def test_a_run_can_be_trained_further(sft, score, run_script, token_rows, tmp_path):
    first = sft("first", *LORA)
    status, _, err = run_script("sft", "--model", first, "--data", token_rows, "--output-dir", tmp_path / "second",
                                *STEPS, *LORA)
    assert status == 0, err
    assert lines(tmp_path / "second" / "metrics.jsonl")[0]["loss"] < lines(first / "metrics.jsonl")[0]["loss"]
    score(tmp_path / "second", "second.jsonl")


@pytest.mark.slow
def test_mesh_and_micro_batches_leave_the_metrics_alone(sft):
    plain = lines(sft("plain", "--mesh.data", 8) / "metrics.jsonl")
    split = lines(sft("split", "--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2, "--num-microbatches", 2)
                  / "metrics.jsonl")
    for one, other in zip(plain, split, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["num_tokens"] == other["num_tokens"]


def test_packing_and_held_out_rows(sft, token_rows):
    run = sft("packed", "--packing", "first-fit", "--max-length", 64, "--eval-data", token_rows, "--eval-every", 2)
    held_out = [line for line in lines(run / "metrics.jsonl") if "eval/loss" in line]
    assert [line["step"] for line in held_out] == [0, 2, 4]
    assert held_out[-1]["eval/loss"] < held_out[0]["eval/loss"]


@pytest.mark.slow
def test_own_objective(sft, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from objectives.sft import sft\n\ndef doubled(scores, batch):\n    loss = sft(scores, batch)\n"
        "    return loss._replace(total=2 * loss.total)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ours = lines(sft("mine", "--objective", "mine:doubled") / "metrics.jsonl")[0]["loss"]
    assert ours == pytest.approx(2 * lines(sft("plain") / "metrics.jsonl")[0]["loss"], rel=1e-5)


def test_a_recipe_and_flags_that_win(run_script, tiny_model, token_rows, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {tiny_model}\ndata: {token_rows}\nmax-steps: 9\nlearning_rate: 1e-3\n"
                      "lora: {rank: 2, targets: [q, v]}\nmesh: {fsdp: 2}\ndtype: float32\n")
    status, _, err = run_script("sft", "--config", recipe, "--output-dir", tmp_path / "run", "--max-steps", 1,
                                "--lora.alpha", 4)
    assert status == 0, err
    import yaml

    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["max_steps"], config["learning_rate"], config["batch_size"]) == (1, 1e-3, 8)
    assert config["num_microbatches"] == 1  # chosen, and kept for when the run goes on
    assert config["lora"] == {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["q", "v"]}


def test_generate_takes_token_rows_of_a_model_without_tokenizer(run_script, tiny_model, token_rows, tmp_path):
    out = tmp_path / "out.jsonl"
    status, _, err = run_script("generate", "--model", tiny_model, "--data", token_rows, "--output", out,
                                "--max-new-tokens", 5, "--temperature", 1.0, "--seed", 3)
    assert status == 0, err
    assert all(len(row["completion_tokens"]) == 5 for row in lines(out))
    assert len({tuple(row["completion_tokens"]) for row in lines(out)}) > 20  # no batch repeats another's draws


@pytest.mark.slow
def test_the_embedded_model_knows_paris(run_script):
    status, out, _ = run_script("generate", "--model", "smollm2-135m-instruct", "--prompt",
                                "What is the capital of France?", "--temperature", 0, "--max-new-tokens", 12)
    assert status == 0
    assert "Paris" in out


@pytest.mark.parametrize("name", ["sft", "score", "generate", "export", "quickstart"])
def test_help_teaches(run_script, name):
    status, out, _ = run_script(name, "--help")
    assert status == 0
    assert "--config" in out
    if name != "quickstart":
        assert f"python -m scripts.{name}" in out


@pytest.mark.slow
def test_any_checkpoint_of_a_run_is_a_model_the_best_one_by_name(run_script, tiny_model, token_rows, write_rows,
                                                                     tmp_path):
    run = tmp_path / "run"
    others = write_rows("others.jsonl", [{"tokens": list(range(first, first + 20))} for first in range(8)])
    flags = ("--model", tiny_model, "--data", token_rows, "--eval-data", others, "--batch-size", 4, "--save-every", 2,
             "--eval-every", 2, "--max-steps", 14, "--optimizer.schedule", "constant", "--dtype", "float32",
             "--learning-rate", 0.1)
    assert run_script("sft", *flags, "--keep-best", "--output-dir", run)[0] == 0
    losses = {line["step"]: line["eval/loss"] for line in lines(run / "metrics.jsonl")
              if "eval/loss" in line and line["step"]}
    best = min(losses, key=losses.get)
    assert best < 12, "the best is to be one that is not among the newest two"

    def scores(reference):
        out = tmp_path / "scores.jsonl"
        status, _, err = run_script("score", "--model", reference, "--data", token_rows, "--output", out)
        return (out.read_text(), err) if status == 0 else (None, err)

    assert scores(f"{run}@best") == scores(f"{run}@{best}") != scores(run)
    assert scores(f"{run}@5")[1] == f"error: {run}@5: no such checkpoint; there are {best}, 12, 14\n"
