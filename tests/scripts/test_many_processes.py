"""The same command by one process, two and four: the same run. Processes that are killed, and that are told to stop."""

import json
import random
import re
import shutil
import signal

import numpy as np
import pytest
from processes import TINY, ended, finish, kill_one, launched, started, wait_for_checkpoint
from same_run import TIMES

from tests.fixtures.variants import cases
from training.checkpoints import finished_steps
from training.metrics import read_metrics

DATA = ("--mesh.data", 4)
SPLIT = ("--mesh.fsdp", 2, "--mesh.tensor", 2, "--packing", "first-fit", "--max-length", 40)


@pytest.fixture
def flags(tmp_path):
    """22 rows of training, 5 held out; 6 rows a step, which neither 22 nor 4 devices divide."""
    draw = np.random.default_rng(0)
    for name, count in (("rows", 22), ("held_out", 5)):
        rows = ({"tokens": draw.integers(0, 128, length).tolist()} for length in draw.integers(9, 17, count))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("--data", tmp_path / "rows.jsonl", "--eval-data", tmp_path / "held_out.jsonl", "--batch-size", 6)


def timeless(run):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(run)]


def assert_same_numbers(run, other):
    """All metrics of all steps, counts exactly."""
    one, two = timeless(run), timeless(other)
    assert [list(line) for line in one] == [list(line) for line in two]
    for a, b in zip(one, two):
        assert a == pytest.approx(b, rel=1e-5), (a, b)
        assert a.get("num_tokens") == b.get("num_tokens")


def assert_written_once(run, printed, steps):
    """Whole lines, every step once, nothing left over; and one process alone says that it is done."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, steps + 1))
    assert [line["step"] for line in lines if "eval/loss" in line] == [0, 2, steps]
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints", "config.yaml", "launches.jsonl", "metrics.jsonl", "model", "run.lock"]
    assert finished_steps(run / "checkpoints") == [steps]
    assert [out.count("done:") for out in printed] == [1] + [0] * (len(printed) - 1)


@pytest.mark.slow
@pytest.mark.parametrize(("more", "counts"), [
    pytest.param(SPLIT, (2,), id="fsdp and tensor, packed"),
    pytest.param(SPLIT, (4,), id="fsdp and tensor, packed, four"),
    pytest.param(DATA, (2, 4), id="data"),
])
def test_more_processes_make_the_same_run(tmp_path, flags, more, counts):
    flags = (*flags, *more, "--max-steps", 4, "--eval-every", 2)
    with started(tmp_path / "1", *flags, devices=4) as alone:
        for count in counts:
            with started(tmp_path / str(count), *flags, count=count, devices=4 // count) as together:
                printed = ended(together)
            assert_written_once(tmp_path / str(count), printed, 4)
        assert_written_once(tmp_path / "1", ended(alone), 4)
    for count in counts:
        assert_same_numbers(tmp_path / str(count), tmp_path / "1")


def saved(run, step):
    """The position in the data and the checksums of weights, optimiser state and key."""
    return json.loads((run / "checkpoints" / str(step) / "data" / "metadata").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_one_of_two_is_killed_and_two_or_one_go_on(tmp_path, flags, which):
    flags = (*flags, "--max-steps", 30, "--save-every", 3)
    finish(tmp_path / "whole", *flags, count=2)
    run, copy = tmp_path / "killed", tmp_path / "copy"
    with started(run, *flags, count=2) as processes:
        [errors] = kill_one(processes, run, random.randint(1, 15), which)
    if which == 1:  # JAX's coordinator lives in process 0: without it, JAX may abort the others before they can speak
        assert len(re.findall("^error: ", errors, re.MULTILINE)) == 1
        assert "Traceback" not in errors
    assert max(finished_steps(run / "checkpoints")) < 30
    shutil.copytree(run, copy)
    finish(run, *flags, count=2)
    assert timeless(run) == timeless(tmp_path / "whole")
    assert saved(run, 30) == saved(tmp_path / "whole", 30)
    shutil.rmtree(run)
    copy.rename(run)  # a run goes on under its own name only
    finish(run, *flags, devices=2)
    assert_same_numbers(run, tmp_path / "whole")


@pytest.mark.slow
def test_one_of_two_that_is_told_to_stop_stops_both_after_the_same_step(tmp_path, flags):
    run = tmp_path / "run"
    with started(run, *flags, "--max-steps", 100_000, "--save-every", 20, count=2, devices=2) as processes:
        wait_for_checkpoint(processes, run, 20)
        processes[1].send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=90)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    steps = {int(step) for error in errors for step in re.findall(r"^stopped by SIGTERM after step (\d+)", error, re.M)}
    assert len(steps) == 1
    assert steps == {max(finished_steps(run / "checkpoints"))} == {read_metrics(run)[-1]["step"]}


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path):
    model = cases.write(tmp_path / "model", "adapter, rank_pattern")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"tokens": list(range(1, 9 + at))}) + "\n"
                                                 for at in range(5)))
    scores = []
    for count, mesh in ((1, ()), (2, ("--mesh.fsdp", 2, "--mesh.tensor", 2))):
        flags = ("--model", model, "--data", tmp_path / "rows.jsonl", "--dtype", "float32", "--batch-size", 3,
                 "--output", tmp_path / f"{count}.jsonl", *mesh)
        with launched("score", *flags, count=count, devices=2) as processes:
            assert sorted(out.count("5 rows scored") for out in ended(processes)) == [0, 1][-count:]
        lines = (tmp_path / f"{count}.jsonl").read_text().splitlines()
        scores.append(np.concatenate([json.loads(line)["logps"] for line in lines]))
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.slow
def test_two_processes_generate_as_one(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"tokens": list(range(1, 6 + at))}) + "\n"
                                                 for at in range(5)))
    drawn = []
    for count, mesh in ((1, ()), (2, ("--mesh.fsdp", 2, "--mesh.tensor", 2))):
        flags = ("--model", TINY, "--data", tmp_path / "rows.jsonl", "--dtype", "float32", "--max-new-tokens", 7,
                 "--num-samples", 2, "--output", tmp_path / f"{count}.jsonl", *mesh)
        with launched("generate", *flags, count=count, devices=2) as processes:
            assert sorted(out.count("10 completions") for out in ended(processes)) == [0, 1][-count:]
        lines = [json.loads(line) for line in (tmp_path / f"{count}.jsonl").read_text().splitlines()]
        drawn.append([line["completion_tokens"] for line in lines])
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 10
