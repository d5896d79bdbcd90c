"""scripts.grpo and scripts.ppo by one process, two and four: the same run; with rewards that are another on one host;
one that is killed, frozen, or told to stop."""

import json
import os
import re
import shutil
import signal

import pyarrow.parquet as pq
import pytest
from chat_model import write_model, write_reward_model
from processes import ROOT, WAIT, ended, launched, wait_for_checkpoint
from same_run import TIMES

from training.checkpoints import finished_steps
from training.metrics import read_metrics

TEMPLATE = ("{% for m in messages %}{{ '[' + m.role[0] + ']' + m.content }}{% if m.role == 'assistant' %}<end>"
            "{% endif %}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}")
EVERYTHING = ("--max-steps", 3, "--lora.rank", 4, "--lora.dropout", 0.1, "--beta", 0.1, "--num-iterations", 2,
              "--dynamic-sampling-tries", 2, "--eval-every", 2, "--rollouts.num-eval-samples", 2)
SANDBOXED = "chat_model:digits=1.0,math=0.5"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("grpo") / "model")


@pytest.fixture
def grpo(model, tmp_path, monkeypatch):
    """grpo(run, *flags, count=, devices=, rewards=) starts processes; 5 prompts a step, which 2 and 4 do not divide."""
    for name, texts in (("prompts", ("abc", "de", "1 + 2 =", "Hello", "x", "yes", "why")), ("eval", ("q", "zz", "1"))):
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"prompt": text, "answer": "3"}) + "\n" for text in texts))
    monkeypatch.setenv("GRADED", str(tmp_path))

    def start(run, *flags, count=1, devices=1, rewards="chat_model:digits", model=model, script="grpo"):
        given = ("--model", model, "--data", tmp_path / "prompts.jsonl", "--output-dir", run, "--rewards", rewards,
                 "--batch-size", 5, "--group-size", 3, "--max-new-tokens", 6, "--learning-rate", "1e-2",
                 "--rollouts.num-slots", 6, "--rollouts.log-completions-every", 0, "--dtype", "float32")
        evaluated = ("--eval-data", tmp_path / "eval.jsonl") if "--eval-every" in flags else ()
        return launched(script, *given, *evaluated, *flags, count=count, devices=devices, path=ROOT / "tests")

    return start


def timeless(run):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(run)]


def samples(run):
    return [row for path in sorted((run / "samples").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def assert_same_run(run, other):
    """Metrics, completions, rewards and log-probabilities within 1e-5; everything written once."""
    one, two = timeless(run), timeless(other)
    assert [list(line) for line in one] == [list(line) for line in two]
    for a, b in zip(one, two):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5), (a, b)
    rows, others = samples(run), samples(other)
    assert len(rows) == len(others) > 0
    for row, another in zip(rows, others):
        for name, value in row.items():
            numbers = isinstance(value, float) or (isinstance(value, list) and value and isinstance(value[0], float))
            assert another[name] == (pytest.approx(value, abs=1e-5) if numbers else value), name
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in other.iterdir())


def test_two_processes_make_the_run_of_one(tmp_path, grpo):
    with grpo(tmp_path / "1", "--max-steps", 2, devices=2, rewards="host_rewards:kept") as alone, grpo(
            tmp_path / "2", "--max-steps", 2, count=2, rewards="host_rewards:kept") as together:
        assert [out.count("done:") for out in ended(together)] == [1, 0]
        ended(alone)
    graded = {path.name: len(path.read_text()) for path in tmp_path.glob("* of *")}
    assert graded == {"0 of 1": 30, "0 of 2": 18, "1 of 2": 12}  # groups 0 2 4 and 1 3, of 3 rows
    assert_same_run(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "counts"), [
    pytest.param(("--mesh.fsdp", 2), (2, 4), id="data and fsdp"),
    pytest.param(("--mesh.tensor", 2), (2,), id="data and tensor")])
def test_more_processes_make_the_same_run(tmp_path, grpo, mesh, counts):
    """With a reward in the sandbox of each host, evaluation, a reference, an adapter and groups that are replaced."""
    flags = (*EVERYTHING, *mesh)
    with grpo(tmp_path / "1", *flags, devices=4, rewards=SANDBOXED) as alone:
        for count in counts:
            with grpo(tmp_path / str(count), *flags, count=count, devices=4 // count, rewards=SANDBOXED) as together:
                printed = ended(together)
            assert [out.count("done:") for out in printed] == [1] + [0] * (count - 1)
        ended(alone)
    for count in counts:
        assert_same_run(tmp_path / str(count), tmp_path / "1")


ACTOR_CRITIC = ("--max-steps", 3, "--num-iterations", 2, "--critic.num-iterations", 2, "--critic.warmup-steps", 1,
                "--critic.microbatch-tokens", 40, "--critic.learning-rate", "1e-2",
                "--algorithm.missing-end-penalty", 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--mesh.fsdp", 2), ("--lora.rank", 4, "--critic.lora.rank", 4, "--mesh.tensor", 2)])
def test_a_critic_of_several_processes_is_that_of_one(tmp_path, grpo, more):
    """Whitening and returns are of the whole batch."""
    flags = (*ACTOR_CRITIC, *more)
    with grpo(tmp_path / "1", *flags, devices=4, script="ppo") as alone:
        ended(alone)
    with grpo(tmp_path / "2", *flags, count=2, devices=2, script="ppo") as together:
        ended(together)
    assert_same_run(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
def test_a_reward_model_on_the_devices_of_each_makes_the_same_run(tmp_path, grpo, model):
    judge = write_reward_model(tmp_path / "judge", model)
    with grpo(tmp_path / "1", "--max-steps", 2, devices=2, rewards=f"model:{judge}") as alone, grpo(
            tmp_path / "2", "--max-steps", 2, count=2, rewards=f"model:{judge}") as together:
        ended(together)
        ended(alone)
    assert_same_run(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
def test_environments_of_process_0_make_the_same_run(tmp_path, grpo):
    chatting = write_model(tmp_path / "model")
    (chatting / "chat_template.jinja").write_text(TEMPLATE)
    flags = ("--max-steps", 2, "--environment.make", "host_rewards:Echo", "--environment.max-prompt-length", 16,
             "--max-new-tokens", 40, "--sampling.stop", *"aiouAEIOU0123456789.,;:+-*/")
    with grpo(tmp_path / "1", *flags, devices=2, model=chatting) as alone:
        ended(alone)
    with grpo(tmp_path / "2", *flags, count=2, model=chatting) as together:
        ended(together)
    failures = [sorted((tmp_path / run / "failures.jsonl").read_text().splitlines()) for run in "12"]
    assert failures[0] == failures[1]
    assert any(row["finish_reason"] == "stop" for row in samples(tmp_path / "1"))
    assert_same_run(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
@pytest.mark.parametrize(("reward", "error"), [("fails_on_one", "OSError: no sandbox on this host"),
                                               ("late_on_one", "TimeoutError: ")])
def test_a_reward_that_fails_on_one_host_takes_the_rows_of_that_host_alone(tmp_path, grpo, reward, error):
    run = tmp_path / "run"
    with grpo(run, "--max-steps", 2, "--reward-timeout", 2, count=2, rewards=f"host_rewards:{reward}") as processes:
        printed = [process.communicate(timeout=WAIT) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    rewards = [row["reward"] for row in samples(run)]
    groups = [rewards[start : start + 3] for start in range(0, 30, 3)]
    assert [group.count(None) for group in groups] == [0, 3, 0, 3, 0] * 2
    failures = [json.loads(line) for line in (run / "failures.jsonl").read_text().splitlines()]
    assert sorted((each["step"], each["group"], each["row"]) for each in failures) == [
        (step, group, row) for step in (1, 2) for group in (1, 3) for row in range(3)]
    assert all(each["error"].startswith(error) for each in failures)
    told = f"warning: process 1: reward host_rewards:{reward} had no time for 6 rows"
    assert [err.count(told) for _, err in printed] == [2 * (reward == "late_on_one"), 0]


@pytest.mark.slow
def test_bad_values_on_one_host_end_all_with_one_line_and_lose_no_step(tmp_path, grpo):
    flags = ("--max-steps", 4, "--save-every", 0)
    with grpo(tmp_path / "run", *flags, count=2, rewards="host_rewards:bad_on_one") as processes:
        errors = [process.communicate(timeout=WAIT)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    for error in errors:
        assert len(re.findall("^error: process 1: reward host_rewards:bad_on_one: gave nan", error, re.M)) == 1
        assert "Traceback" not in error
    assert finished_steps(tmp_path / "run" / "checkpoints") == [2]


LONG = ("--max-steps", 12, "--save-every", 3, "--lora.rank", 4, "--lora.dropout", 0.1, "--dynamic-sampling-tries", 2)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_two_is_killed_or_frozen_and_two_or_one_go_on(tmp_path, grpo, how):
    whole, run, copy = tmp_path / "whole", tmp_path / "run", tmp_path / "copy"
    with grpo(whole, *LONG, count=2) as processes:
        ended(processes)
    with grpo(run, *LONG, "--hosts.heartbeat-timeout", 10, count=2) as processes:
        wait_for_checkpoint(processes, run, 3)
        os.kill(processes[1].pid, how)
        errors = processes[0].communicate(timeout=90)[1]
        assert processes[0].returncode, errors
    assert max(finished_steps(run / "checkpoints")) < 12
    shutil.copytree(run, copy)
    with grpo(run, *LONG, count=2) as processes:
        ended(processes)
    assert timeless(run) == timeless(whole)
    assert samples(run) == samples(whole)
    shutil.rmtree(run)
    copy.rename(run)
    with grpo(run, *LONG, devices=2) as processes:
        ended(processes)
    assert_same_run(run, whole)


@pytest.mark.slow
def test_one_of_two_that_is_told_to_stop_stops_both_after_the_same_step(tmp_path, grpo):
    run = tmp_path / "run"
    with grpo(run, "--max-steps", 10_000, "--save-every", 2, count=2) as processes:
        wait_for_checkpoint(processes, run, 2)
        processes[1].send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=90)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    steps = {int(step) for error in errors for step in re.findall(r"^stopped by SIGTERM after step (\d+)", error, re.M)}
    assert len(steps) == 1
    assert steps == {max(finished_steps(run / "checkpoints"))} == {read_metrics(run)[-1]["step"]}
