"""A GRPO or PPO run that is killed in any part of a step, or stopped, ends with the numbers of one that was not."""

import functools
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


COMMON = ("--lora.rank", 4, "--lora.dropout", 0.1, "--num-iterations", 2, "--rollouts.num-slots", 4)
FLAGS = {
    "grpo": (*COMMON, "--dynamic-sampling-tries", 3),
    "ppo": (*COMMON, "--critic.lora.rank", 2, "--critic.lora.dropout", 0.1, "--critic.warmup-steps", 2,
            "--critic.num-minibatches", 2, "--critic.learning-rate", "1e-2")}


def run_to_end(script, run, model, prompts, moment="never", step=0):
    """The exit status."""
    flags = ("--model", model, "--data", prompts, "--output-dir", run, "--rewards", "chat_model:digits", "--max-steps",
             STEPS, "--batch-size", 2, "--group-size", 4, "--max-new-tokens", 6, "--learning-rate", "1e-2",
             "--save-every", 3, "--rollouts.log-completions-every", 0, *FLAGS[script])
    command = [sys.executable, ROOT / "tests" / "killed_online.py", script, moment, step, *flags]
    environment = os.environ | simulated.environment(1)
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True,
                          timeout=300).returncode


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A model and prompts."""
    folder = tmp_path_factory.mktemp("online")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("abc", "de", "1 + 2 =", "Hello", "x")))
    return write_model(folder / "model"), prompts


@pytest.fixture(scope="module")
def whole(asked, tmp_path_factory):
    """whole(script): a run that nobody killed."""
    @functools.cache
    def run(script):
        folder = tmp_path_factory.mktemp(script) / "run"
        assert run_to_end(script, folder, *asked) == 0
        return folder

    return run


GRPO = ("rollout", "reward", "scoring", "update", "keeping", "saving")
PPO = ("rollout", "reward", "scoring", "values", "critic", "update", "keeping", "saving")


@pytest.mark.slow
@pytest.mark.parametrize(("script", "moment"), [
    *(("grpo", moment) for moment in GRPO), *(("ppo", moment) for moment in PPO)])
def test_killed_and_started_again(whole, asked, tmp_path, script, moment):
    run, other = tmp_path / "run", whole(script)
    assert run_to_end(script, run, *asked, moment, 8) == -signal.SIGKILL
    assert finished_steps(run / "checkpoints")
    assert run_to_end(script, run, *asked) == 0
    assert_same_run(run, other, STEPS)
    assert said(run) == said(other)


@pytest.mark.slow
@pytest.mark.parametrize("script", FLAGS)
def test_stopped_and_started_again(whole, asked, tmp_path, script):
    run, other = tmp_path / "run", whole(script)
    assert run_to_end(script, run, *asked, "stop", 8) == 0
    assert 0 < finished_steps(run / "checkpoints")[-1] < STEPS
    assert run_to_end(script, run, *asked) == 0
    assert_same_run(run, other, STEPS)
    assert said(run) == said(other)


def said(run):
    return [pq.read_table(path).to_pylist() for path in sorted(Path(run / "samples").glob("*.parquet"))]
