"""scripts.online_dpo on a tiny model: it learns, by any loss on pairs; what it refuses."""

import json

import pyarrow.parquet as pq
import pytest
from chat_model import TINY, write_model


@pytest.fixture
def train(run_script, write_rows, tmp_path):
    """Runs scripts.online_dpo; gives (exit status, standard error, lines of metrics.jsonl)."""
    model = write_model(tmp_path / "model")
    prompts = write_rows("prompts.jsonl", [{"prompt": text} for text in ("abc", "de", "1 + 2 =", "Hello", "x", "yz")])

    def train(*more, **replaced):
        flags = {"data": prompts, "rewards": "chat_model:digits", "max-steps": 3, "batch-size": 4, "group-size": 4,
                 "max-new-tokens": 8, "learning-rate": "1e-2", "rollouts.log-completions-every": 0} | {
                     key.replace("_", "-"): value for key, value in replaced.items()}
        given = [part for key, value in flags.items() for part in (f"--{key}", value)]
        status, _, err = run_script("online_dpo", "--model", model, "--output-dir", tmp_path / "run", *given, *more)
        metrics = tmp_path / "run" / "metrics.jsonl"
        return status, err, [json.loads(line) for line in metrics.read_text().splitlines()] if status == 0 else []

    return train


@pytest.mark.slow
def test_it_learns(train, tmp_path):
    status, err, lines = train("--lora.rank", 4, "--num-microbatches", 2, "--dynamic-sampling-tries", 2,
                               "--optimizer.schedule", "constant", max_steps=30)
    assert status == 0, err
    assert lines[0]["loss"] == pytest.approx(0.6931472)
    assert sum(line["reward"] for line in lines[-5:]) > 5 * 0.2 + sum(line["reward"] for line in lines[:5])
    rows = pq.read_table(tmp_path / "run" / "samples" / "step-000001.parquet").to_pylist()
    used = [row["advantage"] for row in rows if row["advantage"] is not None]
    assert sorted(set(used)) == [-1, 0, 1]
    assert rows[0]["policy_logps"] is None


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--loss", "ipo"), ("--objective", "objectives.simpo:simpo(beta=2.0)")])
def test_any_loss_on_pairs(train, more):
    status, err, lines = train(*more)
    assert status == 0, err
    assert lines[-1]["rewards/accuracies"] >= 0


@pytest.mark.parametrize(("more", "line"), [
    (("--group-size", 1), "a pair is of two answers"), (("--loss", "nothing"), "nothing"),
    (("--reference", "nowhere"), "model 'nowhere': no such file or folder"),
    (("--reference", TINY), "smollm2: its tokenizer is not that of the policy: it has none"),
    (("--objective", "objectives.simpo:simpo", "--reference", "nowhere"), "--reference: nothing reads it"),
    (("--microbatch-tokens", 8), "nothing reads it here; --num-microbatches bounds memory"),
    (("--objective", "chat_model:coupled", "--num-microbatches", 2), "cannot be split into 2 parts")])
def test_what_is_refused_is_one_line(train, more, line):
    status, err, _ = train(*more)
    assert status == 1
    assert line in err.splitlines()[-1]
    assert "Traceback" not in err
