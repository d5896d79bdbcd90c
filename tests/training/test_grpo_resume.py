"""A GRPO run that is killed in any part of a step, or stopped, ends with the numbers of one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import simulated
from chat_model import write_model
from same_run import ROOT, assert_same_run

from training.checkpoints import finished_steps

STEPS = 12


def run_to_end(run, model, prompts, moment="never", step=0):
    """The exit status."""
    flags = ("--model", model, "--data", prompts, "--output-dir", run, "--rewards", "chat_model:digits", "--max-steps",
             STEPS, "--batch-size", 2, "--group-size", 4, "--max-new-tokens", 6, "--learning-rate", "1e-2",
             "--save-every", 3, "--rollouts.log-completions-every", 0, "--lora.rank", 4, "--lora.dropout", 0.1,
             "--num-iterations", 2, "--dynamic-sampling-tries", 3, "--rollouts.num-slots", 4)
    command = [sys.executable, ROOT / "tests" / "killed_grpo.py", moment, step, *flags]
    environment = os.environ | simulated.environment(1)
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True,
                          timeout=300).returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody killed, its model and its prompts."""
    folder = tmp_path_factory.mktemp("grpo")
    model = write_model(folder / "model")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("abc", "de", "1 + 2 =", "Hello", "x")))
    assert run_to_end(folder / "run", model, prompts) == 0
    return folder / "run", model, prompts


@pytest.mark.parametrize("moment", ["reward", *(pytest.param(moment, marks=pytest.mark.slow) for moment in (
    "rollout", "scoring", "update", "keeping", "saving"))])
def test_killed_and_started_again(whole, tmp_path, moment):
    other, model, prompts = whole
    run = tmp_path / "run"
    assert run_to_end(run, model, prompts, moment, 8) == -signal.SIGKILL
    assert finished_steps(run / "checkpoints")
    assert run_to_end(run, model, prompts) == 0
    assert_same_run(run, other, STEPS)
    assert said(run) == said(other)


@pytest.mark.slow
def test_stopped_and_started_again(whole, tmp_path):
    other, model, prompts = whole
    run = tmp_path / "run"
    assert run_to_end(run, model, prompts, "stop", 8) == 0
    assert 0 < finished_steps(run / "checkpoints")[-1] < STEPS
    assert run_to_end(run, model, prompts) == 0
    assert_same_run(run, other, STEPS)
    assert said(run) == said(other)


def said(run):
    return [pq.read_table(path).to_pylist() for path in sorted(Path(run / "samples").glob("*.parquet"))]
