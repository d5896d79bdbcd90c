"""scripts.dpo, scripts.kto and scripts.reward on a tiny model, from pairs to exported weights; and what they refuse."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

STEPS = ("--max-steps", 4, "--batch-size", 4, "--learning-rate", "1e-2", "--dtype", "float32")
LORA = ("--lora.rank", 4)
TINY = Path(__file__).parents[1] / "fixtures" / "families" / "smollm2"
REWARDS = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies", "ties")}


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def pairs(write_rows):
    random = np.random.default_rng(0)

    def answer():
        return random.integers(0, 128, random.integers(2, 12)).tolist()

    prompts = [random.integers(0, 128, 4).tolist() for _ in range(13)]
    return write_rows("pairs.jsonl", [{"chosen_tokens": prompt + answer(), "rejected_tokens": prompt + answer()}
                                      for prompt in prompts])


@pytest.fixture
def labelled(write_rows):
    random = np.random.default_rng(0)
    return write_rows("labelled.jsonl", [{"tokens": random.integers(0, 128, random.integers(6, 20)).tolist(),
                                          "label": bool(number % 2)} for number in range(13)])


@pytest.fixture
def trained(run_script, tiny_model, tmp_path):
    """Runs a script and gives the lines of its metrics; the run is named after its first flags."""

    def train(script, data, name, *more):
        run = tmp_path / name
        status, _, err = run_script(script, "--model", tiny_model, "--data", data, "--output-dir", run, *STEPS, *more)
        assert status == 0, err
        return lines(run / "metrics.jsonl")

    return train


@pytest.mark.parametrize("more", [pytest.param(LORA, id="lora"), pytest.param((), id="full", marks=pytest.mark.slow)])
def test_dpo_begins_at_its_reference_and_leaves_it(trained, pairs, more):
    held_out, first, *_, last, held_out_last = trained("dpo", pairs, "run", *more, "--eval-data", pairs)
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert first.keys() >= REWARDS | {"logps/chosen", "logps/rejected", "entropy"}
    for line, prefix in ((first, ""), (held_out, "eval/")):
        assert [line[f"{prefix}rewards/{name}"] for name in ("chosen", "rejected", "margins", "accuracies")] == [0] * 4
        assert line[f"{prefix}rewards/ties"] == 1
    assert last["rewards/ties"] == 0
    assert held_out_last["eval/loss"] < held_out["eval/loss"] - 0.01
    assert held_out_last["eval/rewards/accuracies"] > 0.5
    assert first["num_tokens"] > 4 * 2 * 6


def same(one, other, tolerance=1e-4):
    for a, b in zip(one, other, strict=True):
        for name in ("loss", "rewards/margins", "rewards/chosen", "logps/chosen", "grad_norm"):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=tolerance, abs=1e-5), name


@pytest.mark.slow
def test_mesh_and_micro_batches_leave_pairs_alone(trained, pairs):
    loss = ("--loss", "sigmoid=1.0,sft_token=0.1")
    split = ("--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2, "--num-microbatches", 2)
    same(trained("dpo", pairs, "plain", *LORA, *loss), trained("dpo", pairs, "split", *LORA, *loss, *split))


@pytest.mark.slow
def test_mesh_and_micro_batches_leave_ktos_reference_point_alone(trained, labelled):
    split = ("--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2, "--num-microbatches", 2)
    more = (*LORA, "--eval-data", labelled, "--learning-rate", "3e-2")
    plain = trained("kto", labelled, "plain", *more)
    same(plain, trained("kto", labelled, "split", *more, *split))
    assert plain[1]["loss"] == 0.5
    assert plain[-1]["eval/kl"] > 0
    assert plain[1].keys() >= {"rewards/chosen", "rewards/rejected", "logps/chosen", "kl", "entropy"}
    assert plain[-1]["eval/loss"] < plain[0]["eval/loss"]


@pytest.mark.slow
def test_a_kept_reference_trains_alike_and_is_taken_again(trained, pairs, tmp_path):
    kept = trained("dpo", pairs, "kept", *LORA, "--keep-reference", "--eval-data", pairs)
    same(kept, trained("dpo", pairs, "plain", *LORA, "--eval-data", pairs))
    files = sorted((tmp_path / "kept" / "reference").iterdir())
    assert [file.name for file in files] == ["held-out-0.jsonl", "train-0.jsonl"]
    before = [file.stat().st_mtime_ns for file in files]
    trained("dpo", pairs, "kept", *LORA, "--keep-reference", "--eval-data", pairs)
    assert [file.stat().st_mtime_ns for file in files] == before


@pytest.mark.slow
def test_another_reference_and_one_that_follows(trained, pairs, tmp_path):
    plain = trained("dpo", pairs, "plain", *LORA)
    other = trained("dpo", pairs, "other", *LORA, "--reference", tmp_path / "plain")
    assert other[0]["rewards/ties"] < 1
    followed = trained("dpo", pairs, "followed", *LORA, "--sync.every", 2, "--sync.alpha", 1)
    same(followed[:2], plain[:2])
    assert abs(followed[2]["rewards/margins"]) == 0  # the reference has just become the policy
    assert followed[3]["rewards/ties"] < 1


@pytest.mark.slow
def test_objectives_without_a_reference_take_arguments(trained, pairs):
    one = trained("dpo", pairs, "one", *LORA, "--objective", "objectives.simpo:simpo")
    other = trained("dpo", pairs, "other", *LORA, "--objective", "objectives.simpo:simpo(beta=2.0, gamma=0.0)")
    assert one[0]["loss"] > other[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [LORA, ()], ids=["lora", "full"])
def test_a_reward_model_scores_alike_as_run_and_exported(trained, run_script, pairs, token_rows, tmp_path, more):
    metrics = trained("reward", pairs, "run", *more, "--eval-data", pairs)
    assert metrics[1]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert metrics[0].keys() >= {f"eval/{name}" for name in REWARDS}
    assert metrics[-1]["eval/loss"] < metrics[0]["eval/loss"] - 0.01

    def scores(model):
        out = tmp_path / "scores.jsonl"
        status, _, err = run_script("score", "--model", model, "--data", token_rows, "--output", out, "--dtype",
                                    "float32")
        assert status == 0, err
        return [row["reward"] for row in lines(out)]

    found = scores(tmp_path / "run")
    assert len(set(found)) == 24
    assert run_script("export", "--model", tmp_path / "run", "--output", tmp_path / "out")[0] == 0
    np.testing.assert_allclose(scores(tmp_path / "out"), found, atol=1e-5)
    again = trained("reward", pairs, "again", "--max-steps", 1)
    assert again[0]["loss"] != trained("reward", pairs, "further", "--max-steps", 1, "--model", tmp_path / "out")[0][
        "loss"]


# --------------------------------------------------------------------------------------------------- bad input

@pytest.fixture
def refused(run_script, tiny_model, tmp_path):
    """The one line that a script ends with; no run directory is left behind."""

    def run(script, data, *more, model=None):
        status, _, err = run_script(script, "--model", model or tiny_model, "--data", data, "--output-dir",
                                    tmp_path / "bad", *STEPS, *more)
        assert status == 1
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert not (tmp_path / "bad").exists()
        return err

    return run


@pytest.mark.parametrize(("flags", "words"), [
    (("--beta", 0), "beta is 0.0 but must be above 0"),
    (("--beta", -0.1), "beta is -0.1 but must be above 0"),
    (("--loss", "sigmoyd"), "no loss is called sigmoyd; there are sigmoid, hinge"),
    (("--loss", "sigmoid=much"), "a weight is no finite number"),
    (("--loss", "sigmoid=1,aot=1", "--num-microbatches", 2), "couples all rows"),
    (("--loss", "exo_pair"), "infinite without label smoothing"),
    (("--label-smoothing", 0.6), "label smoothing is 0.6"),
    (("--divergence", "hellinger"), "no divergence is called hellinger"),
    (("--objective", "objectives.simpo:simpo", "--loss", "ipo"), "--loss ipo: nothing reads it beside --objective"),
    (("--objective", "objectives.simpo:simpo(delta=1)"), "names no function"),
    (("--objective", "objectives.simpo:simpo(open('x'))"), "names no function"),
    (("--sync.every", 2, "--keep-reference"), "--sync.every"),
    (("--objective", "objectives.simpo:simpo", "--reference", "nowhere"), "--reference: nothing reads it"),
    (("--objective", "objectives.simpo:simpo", "--keep-reference"), "--keep-reference: nothing reads it"),
    (("--eval-data", "pairs.jsonl@2"), "a weight mixes several sources"), (("--profile", "5:6"), "ends at step 4"),
    (("--reference", "nowhere"), "model 'nowhere': no such file or folder"),
], ids=str)
def test_bad_settings(refused, pairs, flags, words):
    assert words in refused("dpo", pairs, *flags)


@pytest.mark.parametrize(("script", "flags", "words"), [
    ("kto", ("--objective", "objectives.sft:sft"), "--objective objectives.sft:sft: got an unexpected"),
    ("reward", ("--objective", "objectives.sft:sft", "--centering", 0.1), "--centering: got an unexpected")])
def test_an_objective_that_takes_no_such_setting(refused, pairs, script, flags, words):
    assert words in refused(script, pairs, *flags)


@pytest.mark.parametrize(("script", "row", "words"), [
    ("dpo", {"chosen_tokens": [1, 2], "rejected_tokens": [1, 2]}, "chosen and rejected are the same"),
    ("dpo", {"chosen_tokens": [1, 2], "prompt": "a"}, "so rows must have chosen_tokens and rejected_tokens"),
    ("dpo", {"chosen_tokens": [1, 2, 3], "rejected_tokens": [2, 2, 4], "chosen_loss_mask": [0, 0, 1],
             "rejected_loss_mask": [0, 0, 1]}, "answer different prompts"),
    ("reward", {"chosen_tokens": [1, 2], "rejected_tokens": [1]}, "rejected: no token of the row is a target"),
    ("reward", {"chosen_tokens": [1, 2], "rejected_tokens": [1, 3], "margin": "big"}, "margin must be a number"),
    ("kto", {"tokens": [1, 2], "label": "good"}, "label is good but must be true or false"),
    ("kto", {"tokens": [1, 2]}, "no column label among tokens"),
], ids=str)
def test_bad_rows(refused, write_rows, script, row, words):
    good = {"chosen_tokens": [1, 2, 3], "rejected_tokens": [1, 2, 4], "tokens": [1, 2, 3], "label": True}
    good |= {"margin": 1.0} if "margin" in row else {}
    err = refused(script, write_rows("bad.jsonl", [good, good, row]))
    assert words in err
    assert "bad.jsonl:3: " in err


@pytest.mark.parametrize("record", [{"chosen": "a", "prompt": "b"}, {"text": "a"}])
def test_a_missing_column_is_named_among_those_there(refused, write_rows, record):
    err = refused("dpo", write_rows("bad.jsonl", [record]), model="smollm2-135m-instruct")
    assert f"no known columns among {', '.join(sorted(record))}" in err


@pytest.mark.parametrize("script", ["sft", "dpo", "kto", "generate"])
def test_a_reward_model_where_a_policy_is_needed(run_script, write_rows, tmp_path, script):
    model = Path(__file__).parents[1] / "fixtures" / "reward_model"
    more = ("--output-dir", tmp_path / "bad", "--max-steps", 1) if script != "generate" else ()
    status, _, err = run_script(script, "--model", model, "--data", write_rows("x.jsonl", [{"tokens": [1]}]), *more)
    assert status == 1
    assert "is a reward model, which writes nothing" in err
    assert err.count("\n") == 1


def test_a_reward_model_as_the_reference(refused, pairs):
    model = Path(__file__).parents[1] / "fixtures" / "reward_model"
    assert "is a reward model" in refused("dpo", pairs, "--reference", model)


@pytest.mark.parametrize("script", ["dpo", pytest.param("kto", marks=pytest.mark.slow)])
def test_a_reference_of_a_shorter_context(refused, write_rows, tmp_path, script):
    """Of the longest row, be it held out."""
    shutil.copytree(TINY, tmp_path / "short")
    config = json.loads((TINY / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    short, long = ({"chosen_tokens": [*range(length), 1], "rejected_tokens": [*range(length), 2], "label": True,
                    "tokens": [*range(length)]} for length in (8, 20))
    files = [write_rows(f"{number}.jsonl", rows) for number, rows in enumerate(([short] * 4, [short, long]))]
    more = ("--reference", tmp_path / "short")
    assert "its context of 16 tokens is shorter than the longest row, 2" in (
        err := refused(script, files[1], *more))
    assert "lower --max-length" in err
    assert "leave longer rows out of --eval-data" in refused(script, files[0], "--eval-data", files[1], *more)


@pytest.mark.parametrize("name", ["dpo", "kto", "reward"])
def test_help_teaches(run_script, name):
    status, out, _ = run_script(name, "--help")
    assert status == 0
    assert f"python -m scripts.{name}" in out
    assert "--config" in out
