"""A run that is killed and started again ends with the very weights of one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from training.metrics import MetricsFile, read_metrics

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "fixtures" / "families" / "smollm2"
STEPS = 40
TIMES = {"tokens_per_second", "step_seconds", "data_seconds", "tflops_per_second", "host_memory_gib"}


def start(run, rows, *more):
    """scripts.sft in a process of its own, on one device."""
    command = [sys.executable, "-m", "scripts.sft", "--model", TINY, "--data", rows, "--eval-data", rows,
               "--output-dir", run, "--max-steps", STEPS, "--batch-size", 4, "--learning-rate", "1e-2",
               "--save-every", 6, "--dtype", "float32", *more]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    return subprocess.Popen([str(part) for part in command], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def finish(run, rows, *more):
    process = start(run, rows, *more)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def kill_after(run, rows, lines, *more):
    """SIGKILL once metrics.jsonl holds that many lines, and a random moment later."""
    process = start(run, rows, *more)
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 300
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def final(run):
    """Every number of the last checkpoint."""
    with ocp.CheckpointManager((run / "checkpoints").absolute()) as manager:
        assert manager.latest_step() == STEPS
        found = manager.restore(STEPS, args=ocp.args.Composite(
            trainable=ocp.args.StandardRestore(), progress=ocp.args.StandardRestore(), data=ocp.args.JsonRestore()))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(
        {name: found[name] for name in ("trainable", "progress", "data")})}


def assert_same_run(run, other):
    one, two = final(run), final(other)
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)
    timeless = [[{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(each)]
                for each in (run, other)]
    assert timeless[0] == timeless[1]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(f'{{"tokens": {draw.integers(0, 128, length).tolist()}}}\n'
                            for length in draw.integers(8, 33, 22)))
    return path


LORA = ("--lora.rank", 4, "--lora.dropout", 0.1)


def test_killed_once_in_a_lora_run_with_dropout(tmp_path, rows):
    finish(tmp_path / "whole", rows, *LORA)
    kill_after(tmp_path / "killed", rows, random.randint(7, STEPS - 3), *LORA)
    finish(tmp_path / "killed", rows, *LORA)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), LORA, ("--packing", "first-fit", "--max-length", 64)],
                         ids=["full", "lora", "packed"])
def test_killed_three_times_out_of_three(tmp_path, rows, more):
    finish(tmp_path / "whole", rows, *more)
    for attempt in range(3):
        run = tmp_path / f"killed{attempt}"
        kill_after(run, rows, random.randint(1, STEPS - 3), *more)
        finish(run, rows, *more)
        assert_same_run(tmp_path / "whole", run)


def test_metrics_after_a_resume_hold_each_step_once(tmp_path):
    file = MetricsFile(tmp_path, 0)
    for step in range(1, 6):
        file.write(step, {"loss": float("nan") if step == 2 else 0.5, "num_tokens": 10})
    with (tmp_path / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 6, "lo')
    again = MetricsFile(tmp_path, 3)
    assert again.totals["num_tokens"] == 30
    again.write(4, {"loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert read_metrics(tmp_path)[1]["loss"] is None
