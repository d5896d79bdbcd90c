"""A run made longer, in other micro-batches, ends as one that was as long from the start."""

import json

import pytest
import yaml

FLAGS = ("--optimizer.schedule", "constant", "--save-every", 1, "--batch-size", 4, "--learning-rate", "1e-3")


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_longer_run(run_script, tiny_model, token_rows, tmp_path):
    def train(name, steps, *more):
        return run_script("sft", "--model", tiny_model, "--data", token_rows, "--output-dir", tmp_path / name,
                          "--max-steps", steps, *FLAGS, *more)

    assert train("straight", 4)[0] == 0
    assert train("longer", 2)[0] == 0
    status, out, err = train("longer", 4, "--num-microbatches", 2, "--remat", "full")
    assert status == 0, err
    assert "note: --max-steps 4, 2 before: the learning rate stays as it is" in out
    assert "--remat full, none before; --num-microbatches 2, 1 before" in out
    assert losses(tmp_path / "longer") == pytest.approx(losses(tmp_path / "straight"), rel=1e-5)
    assert yaml.safe_load((tmp_path / "longer" / "config.yaml").read_text())["max_steps"] == 4
    status, out, _ = train("longer", 4)
    assert status == 0
    assert "--max-steps" not in out
    status, _, err = train("longer", 5, "--optimizer.schedule", "cosine")
    assert status == 1
    assert err.count("\n") == 1
