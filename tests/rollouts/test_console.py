"""What is said of completions without a reward, and of what rewards failed on."""

import contextlib
import json
from pathlib import Path

import pytest

from data.prompts import Prompt
from errors import InputError
from rewards.scoring import Failure
from rollouts.console import FailureLog, check_rewards_work, log_completions, log_failures
from rollouts.episodes import Episode, Group


def group(rewards, failures=()):
    return Group(0, Prompt([1], "a prompt", {}), [
        Episode([1, 2], 1, [True], [-1.0], messages=[{"role": "assistant", "content": "an answer"}], reward=reward)
        for reward in rewards], [Failure("judge", row, "ValueError: no\nverdict", "") for row in failures])


def test_failures_are_warned_of_whenever_there_are_twice_as_many(tmp_path, capsys):
    log, path = FailureLog(tmp_path / "failures.jsonl"), tmp_path / "failures.jsonl"
    log.update(1, [group([1.0, 1.0])])
    assert not path.exists()
    assert capsys.readouterr().err == ""
    warned = []
    for step in range(2, 10):
        log.update(step, [group([None, 1.0], [0])])
        warned += capsys.readouterr().err.splitlines()
    assert [line.partition(" time(s) so far")[0] for line in warned] == [
        f"warning: step {step}: judge failed {count}" for step, count in ((2, 1), (3, 2), (5, 4), (9, 8))]
    assert "the last time with ValueError: no verdict;" in warned[0]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*range(2, 10)]


def test_what_an_environment_opened_with_is_shown_for_the_prompt(capsys):
    shown = group([1.0, 0.0])
    shown.episodes[0].opening = [{"role": "user", "content": "Guess."}]
    log_completions([shown], 1, count=2)
    assert capsys.readouterr().out.splitlines()[0].split() == ["step", "1", "Guess."]


def test_completions_without_a_reward_are_shown_as_such(capsys):
    log_completions([group([None, 0.5])], 1, count=2)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:]] == ["0.50", "none"]


def test_failures_of_a_step_take_the_place_of_those_of_a_killed_run(tmp_path):
    def failed(error):
        return Group(0, Prompt([1], "a", {}), [], [Failure("r", 1, error, "so")])

    path = tmp_path / "failures.jsonl"
    for step, error in ((1, "one"), (2, "two"), (2, "half a pair: \ud800, ü"), (3, "three")):
        log_failures(path, step, [failed(error)])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(row["step"], row["error"]) for row in rows] == [(1, "one"), (2, "half a pair: \ud800, ü"), (3, "three")]


@pytest.mark.parametrize(("groups", "error"), [
    ([group([None, None], [0, 1]), group([None, None], [None])], "judge failed on every row of the first step, with "
     "ValueError: no verdict; runs/x.jsonl has the traceback; mend it, or give --rollouts.allow-failing-rewards"),
    ([group([None, None], [0, 1]), group([None, 1.0], [0])], None), ([group([1.0, 1.0])], None)])
def test_a_reward_that_works_on_no_row_is_an_error(groups, error):
    with pytest.raises(InputError, match=error) if error else contextlib.nullcontext():
        check_rewards_work(groups, Path("runs/x.jsonl"))


def test_a_reward_that_is_late_on_every_row_may_be_better_off_later():
    late = group([None], [0])
    late.failures[:] = [late.failures[0]._replace(error="TimeoutError: not done within 60 s")]
    check_rewards_work([late], Path("runs/x.jsonl"))
