"""Scripts on a tiny model in processes of their own, which can be killed, and whether two runs are the same."""

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
import simulated

from training.metrics import read_metrics
from training.reading import ARRAYS

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "fixtures" / "families" / "smollm2"
LORA = ("--lora.rank", 4, "--lora.dropout", 0.1)
TIMES = {"tokens_per_second", "step_seconds", "data_seconds", "compile_seconds", "tflops_per_second", "host_memory_gib",
         "rollout_tokens_per_second", *(f"time_share/{part}" for part in ("rollout", "reward", "scoring", "update"))}
WAIT = 300
"""seconds after which a process counts as hanging"""


def write_rows(path, count, vocab=128):
    """Rows of 9 to 16 tokens, which are padded alike, so that a process compiles but one step."""
    draw = np.random.default_rng(0)
    path.write_text("".join(f'{{"tokens": {draw.integers(0, vocab, length).tolist()}}}\n'
                            for length in draw.integers(9, 17, count)))
    return path


def write_pairs(path, count):
    """Pairs of a prompt of 4 tokens and answers of 5 to 12."""
    draw = np.random.default_rng(0)
    prompts = draw.integers(0, 128, (count, 4)).tolist()
    answers = [[draw.integers(0, 128, length).tolist() for length in draw.integers(5, 13, 2)] for _ in prompts]
    path.write_text("".join(f'{{"chosen_tokens": {prompt + chosen}, "rejected_tokens": {prompt + rejected}}}\n'
                            for prompt, (chosen, rejected) in zip(prompts, answers)))
    return path


def flags(run, rows, steps, *more):
    """The command line of a run of 4 rows a step, saved every 6 steps."""
    return [str(part) for part in ("--model", TINY, "--data", rows, "--output-dir", run, "--max-steps", steps,
                                   "--batch-size", 4, "--learning-rate", "1e-2", "--save-every", 6,
                                   "--dtype", "float32", *more)]


def start(arguments, script="sft", *, first=None):
    """On one device, in a process group of its own with its workers. `first` is Python that the process begins with."""
    python = [sys.executable, "-m", f"scripts.{script}", *arguments]
    if first is not None:
        python[1:1] = ["-c", f"{first}; import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]
    environment = os.environ | simulated.environment(1)
    return subprocess.Popen(python, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True)


def ended(process):
    """(exit status, lines on standard error but for those of the progress)."""
    try:
        _, err = process.communicate(timeout=WAIT)
    finally:
        process.kill()
    return process.returncode, [line for line in err.splitlines() if not line.startswith("step ")]


def finish(arguments, script="sft"):
    assert ended(start(arguments, script)) == (0, [])


def wait_until(reached, process):
    """Returns as soon as `reached()`; the process must live so long."""
    deadline = time.monotonic() + WAIT
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def kill(process):
    """SIGKILL to the process and its workers, as when the machine is gone."""
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def steps_done(run):
    """A function that tells how many lines the process to be started has written, or kept, in metrics.jsonl."""
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_ino if metrics.exists() else None  # a process that goes on begins with a new file

    def count():
        return metrics.read_bytes().count(b"\n") if metrics.exists() and metrics.stat().st_ino != before else 0

    return count


def unfinished(run):
    """Checkpoints that are being written, or that a kill left so."""
    return {int(path.name.split(".")[0]) for path in (run / "checkpoints").glob("*.orbax-checkpoint-tmp*")}


def kill_once(run, arguments, beyond, draw, script="sft", *, in_a_save=False):
    """Kills the run a random moment after a random step beyond `beyond`, or in a save of such a step."""
    done, lines, pause = steps_done(run), beyond + draw.randint(1, 12), draw.uniform(0, 0.03)
    process = start(arguments, script)
    wait_until(lambda: done() >= lines, process)
    if in_a_save:
        wait_until(lambda: any(step > lines for step in unfinished(run)), process)
    else:
        time.sleep(pause)
    kill(process)


def final(run, steps):
    """Every number of the last checkpoint: weights, optimiser state, key, position in the data."""
    with ocp.CheckpointManager((run / "checkpoints").absolute()) as manager:
        assert manager.latest_step() == steps
        items = [name for name in ARRAYS if (manager.directory / str(steps) / name).exists()]
        found = manager.restore(steps, args=ocp.args.Composite(
            **dict.fromkeys(items, ocp.args.StandardRestore()), data=ocp.args.JsonRestore()))
    leaves = jax.tree_util.tree_leaves_with_path({name: found[name] for name in (*items, "data")})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def timeless(run):
    """The lines of metrics.jsonl without what no two runs have in common."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(run)]


def assert_same_run(run, other, steps):
    """Bit for bit, every step written once; and nothing is left over."""
    one, two = final(run, steps), final(other, steps)
    assert one.keys() == two.keys()
    assert {"['progress']['rng']", "['progress']['step']"} <= one.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)
    assert [line["step"] for line in timeless(run) if "num_tokens" in line] == list(range(1, steps + 1))
    assert timeless(run) == timeless(other)
    assert not unfinished(run)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in other.iterdir())


def seeded(seed=None):
    """Random moments; a failure prints the seed."""
    seed = random.randrange(2**31) if seed is None else seed
    print(f"random.Random({seed})")
    return random.Random(seed)
