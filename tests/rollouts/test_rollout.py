"""A batch of rollouts: what rewards are given, what is counted, how rows are laid out, what is kept."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.prompts import Prompt
from rewards.registry import Weighted
from rollouts.generate import Completion
from rollouts.rollout import SpreadMonitor, join, log_failures, roll_out, rollout_metrics, to_batch, write_parquet


def letters(ids):
    """Token n is the n-th letter; 0 is the end token, which has no text."""
    return "".join(chr(ord("a") + i) for i in ids if i)


PROMPTS = [Prompt([1, 2], "ab", {"answer": "x"}), Prompt([3], [{"role": "user", "content": "c"}], {"level": 2})]
COMPLETIONS = [Completion([4, 0], [-0.5, -0.25], "stop"), Completion([5, 6, 7], [-1.0, -2.0, -3.0], "length"),
               Completion([0], [-0.1], "stop"), Completion([8, 0], [-0.2, -0.3], "stop")]


def rolled(*functions, **replaced):
    rewards = [Weighted(f"r{number}", weight, function) for number, (function, weight) in enumerate(functions)]
    out = roll_out(PROMPTS, lambda tokens, key, group: COMPLETIONS, letters, rewards, None, 2, 10.0)
    return dataclasses.replace(out, **replaced)


def lengths(prompts, completions, completion_ids, **_):
    return [float(len(each)) for each in completion_ids]


def test_rewards_get_prompts_completions_and_columns_in_the_prompts_form():
    seen = {}

    def reward(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [1.0, None, 0.0, 2.0]

    out = rolled((reward, 2.0), (lengths, 0.5))
    chat = PROMPTS[1].text
    assert seen == {"prompts": ["ab", "ab", chat, chat], "answer": ["x", "x", None, None],
                    "completions": ["e", "fgh", [{"role": "assistant", "content": ""}],
                                    [{"role": "assistant", "content": "i"}]],
                    "level": [None, None, 2, 2], "completion_ids": [each.tokens for each in COMPLETIONS]}
    np.testing.assert_array_equal(out.rewards, [[3.0, 1.5], [0.5, 5.0]])


def test_no_reward_at_all_is_no_0():
    out = rolled((lambda prompts, completions, **_: [None, 0.0, None, None], 1.0))
    np.testing.assert_array_equal(out.rewards, [[np.nan, 0.0], [np.nan, np.nan]])
    np.testing.assert_array_equal(out.spread(), [False, False])
    metrics = rollout_metrics(out)
    assert metrics["reward"] == 0.0
    assert metrics["frac_reward_zero_std"] == 1.0
    assert "reward_std" not in metrics


def test_an_exception_is_counted_and_told(tmp_path):
    def reward(prompts, completions, **_):
        if "fgh" in completions:
            raise ValueError("cannot judge")
        return [1.0] * len(completions)

    out = rolled((reward, 1.0))
    assert out.values["r0"] == [1.0, None, 1.0, 1.0]
    assert rollout_metrics(out)["rewards/r0/failures"] == 1
    log_failures(tmp_path / "failures.jsonl", 3, out.failures)
    [line] = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 3, "reward": "r0", "row": 1, "error": "ValueError: cannot judge",
                                "completion": "fgh"}
    log_failures(tmp_path / "failures.jsonl", 2, out.failures)  # of a run that goes on from step 1
    for _ in range(2):
        log_failures(tmp_path / "failures.jsonl", 3, out.failures)
    lines = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3]


def test_metrics_have_the_fields_names_and_plain_values():
    metrics = rollout_metrics(rolled((lengths, 1.0), seconds={"rollout": 2.0, "reward": 1.0}))
    assert metrics == pytest.approx({
        "reward": 2.0, "reward_std": np.sqrt(0.5), "frac_reward_zero_std": 0.0, "rewards/r0/mean": 2.0,
        "rewards/r0/std": np.sqrt(0.5), "completions/mean_length": 2.0, "completions/min_length": 1.0,
        "completions/max_length": 3.0, "completions/clipped_ratio": 0.25, "completions/mean_terminated_length": 5 / 3,
        "rollout_tokens_per_second": 4.0})


def test_a_batch_ends_prompts_and_begins_completions_at_one_column():
    batch = to_batch(rolled((lengths, 1.0)), 4, 8)
    assert batch["tokens"].shape == (4, 12)
    assert batch["tokens"][1].tolist() == [0, 0, 1, 2, 5, 6, 7, 0, 0, 0, 0, 0]
    assert batch["positions"][1].tolist() == [0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0]
    assert batch["segment_ids"][1].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert batch["loss_mask"][1].tolist() == [0] * 4 + [1] * 3 + [0] * 5
    assert batch["sampler_logps"][1].tolist() == [0] * 4 + [-1.0, -2.0, -3.0] + [0] * 5
    assert batch["loss_mask"][2].sum() == 1, "the end token is trained on"
    assert batch["truncated"].tolist() == [0, 1, 0, 0]


def test_joined_rollouts_keep_what_belongs_together():
    def fails(prompts, completions, **_):
        raise ValueError(completions)

    some, others = rolled((lengths, 1.0)), rolled((fails, -1.0))
    joined = join([some, others]).take([2, 1])
    assert joined.prompts == [PROMPTS[0], PROMPTS[1]]
    assert joined.texts == ["e", "fgh", "", "i"]
    np.testing.assert_array_equal(joined.rewards, [[np.nan, np.nan], [1, 2]])
    assert [failure.row for failure in joined.failures] == [4, 5, 6, 7]


def test_every_rollout_is_kept(tmp_path):
    out = rolled((lambda prompts, completions, **_: [1.0, None, 0.5, 0.0], 1.0))
    path = tmp_path / "samples" / "step-000001.parquet"
    write_parquet(path, out, np.asarray([[1.0, 0.0], [np.nan, np.nan]]))
    rows = pq.read_table(path).to_pylist()
    assert rows[1] == {"prompt": "ab", "completion": "fgh", "reward": None, "rewards/r0": None, "advantage": 0.0,
                       "length": 3, "finish_reason": "length"}
    assert json.loads(rows[2]["prompt"]) == PROMPTS[1].text
    assert [row["advantage"] for row in rows] == [1.0, 0.0, None, None]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_long_without_spread_is_warned_of_once_in_a_while(capsys):
    monitor, flat = SpreadMonitor(patience=3), rolled((lambda prompts, completions, **_: [1.0] * 4, 1.0))
    for step in range(1, 8):
        monitor.update(flat, step)
    assert capsys.readouterr().err.count("warning: step") == 2
    monitor.update(rolled((lengths, 1.0)), 8)
    monitor.update(flat, 9)
    assert capsys.readouterr().err == ""
