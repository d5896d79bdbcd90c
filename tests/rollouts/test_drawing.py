"""The groups of a step: those that teach nothing are replaced, in order."""

import numpy as np

from data.prompts import Prompt
from rewards.scoring import Failure
from rollouts.drawing import Draw, draw_groups, greedy_rewards
from rollouts.episodes import Episode, Group, rewards_of
from rollouts.metrics import SpreadMonitor, rollout_metrics, step_metrics


def group(number, values, lengths=(1, 1), reasons=("stop", "stop"), text=""):
    prompt, rewards = Prompt([1], text or str(number), {}), [None if each is None else float(each) for each in values]
    return Group(number, prompt, [
        Episode([1] * (1 + length), 1, [True] * length, [-1.0] * length, finish_reason=reason, values={"r": reward},
                reward=reward) for reward, length, reason in zip(rewards, lengths, reasons)])


def drawn(draws, max_tries):
    """draw_groups where try n gives rewards draws[n], in another order than that of the prompts, named 10 n + i."""
    tried = []

    def collect(prompts, number, advance):
        tried.append(prompts)
        advance(2)
        groups = [group(place, rewards, text=str(10 * number + place)) for place, rewards in enumerate(draws[number])]
        return groups[::-1]

    batches = iter([[Prompt([1], text, {})] * 2 for text in ("first", "more", "more")])
    return draw_groups(lambda: next(batches), collect, max_tries), [prompts[0].text for prompts in tried]


def names(groups):
    return [group.prompt.text for group in groups]


def test_groups_without_spread_are_replaced_in_order():
    draw, tried = drawn([[(1, 1), (0, 1)], [(0, 0), (2, 1)], [(5, 6), (7, 8)]], max_tries=5)
    assert names(draw.trained) == ["1", "11"]
    assert names(draw.groups) == ["0", "1", "10", "11"]
    assert [group.number for group in draw.groups] == [0, 1, 2, 3]
    assert tried == ["first", "more"], "no draw beyond what is needed"
    assert draw.seconds.keys() == {"rollout", "reward"}


def test_after_the_last_draw_flat_groups_fill_up():
    draw, tried = drawn([[(1, 1), (0, 1)], [(0, 0), (3, 3)]], max_tries=2)
    assert names(draw.trained) == ["1", "0"]
    assert len(tried) == 2


def test_one_draw_replaces_nothing():
    draw, tried = drawn([[(1, 1), (0, 1)]], max_tries=1)
    assert names(draw.trained) == ["0", "1"]
    assert tried == ["first"]


def test_no_reward_is_no_0_and_makes_no_spread():
    groups = [group(0, (None, 0.0)), group(1, (None, None))]
    np.testing.assert_array_equal(rewards_of(groups), [[np.nan, 0.0], [np.nan, np.nan]])
    assert not any(group.has_spread for group in groups)
    metrics = rollout_metrics(groups, 1.0)
    assert metrics["reward"] == 0.0
    assert metrics["frac_reward_zero_std"] == 1.0
    assert "reward_std" not in metrics


def test_metrics_have_the_fields_names_and_plain_values():
    groups = [group(0, (2.0, 3.0), (2, 3), ("stop", "length")), group(1, (1.0, 2.0), (1, 2))]
    metrics = rollout_metrics(groups, 2.0)
    expected = {
        "reward": 2.0, "reward_std": np.sqrt(0.5), "frac_reward_zero_std": 0.0, "rewards/r/mean": 2.0,
        "rewards/r/std": np.sqrt(0.5), "completions/mean_length": 2.0, "completions/min_length": 1.0,
        "completions/max_length": 3.0, "completions/clipped_ratio": 0.25, "completions/mean_terminated_length": 5 / 3,
        "rollout_tokens_per_second": 4.0}
    assert metrics.keys() == expected.keys()
    np.testing.assert_allclose([metrics[name] for name in expected], list(expected.values()))
    assert all(type(value) is float for value in metrics.values())


def test_what_failed_was_not_cut():
    failing = group(0, (1.0, None, 0.0, None), (1, 2, 3, 0), ("stop", "error", "length", "error"))
    assert rollout_metrics([failing], 1.0)["completions/clipped_ratio"] == 0.25


def test_long_without_spread_is_warned_of_once_in_a_while(capsys):
    monitor = SpreadMonitor(patience=3)
    for step in range(1, 8):
        monitor.update([group(0, (1.0, 1.0))], step)
    assert capsys.readouterr().err.count("warning: step") == 2
    monitor.update([group(0, (1.0, 2.0))], 8)
    monitor.update([group(0, (1.0, 1.0))], 9)
    assert capsys.readouterr().err == ""
    alone = SpreadMonitor(patience=2, by_group=False)
    for values in ((1.0,), (2.0,)):
        alone.update([group(0, values), group(1, (1.0,))], 2)
    assert capsys.readouterr().err == ""
    for step in (3, 4):
        alone.update([group(0, (1.0,)), group(1, (None,)), group(2, (1.0,))], step)
    assert "all completions of all prompts got equal rewards, or none" in capsys.readouterr().err


def test_steps_of_one_completion_are_compared_with_each_other(capsys):
    monitor = SpreadMonitor(patience=2, by_group=False)
    for step, value in enumerate((1.0, 0.0, None, 1.0)):
        monitor.update([group(0, (value,))], step)
    assert capsys.readouterr().err == ""
    for step, value in enumerate((1.0, None)):
        monitor.update([group(0, (value,))], step)
    assert "for 2 steps" in capsys.readouterr().err


def test_answers_that_others_are_compared_with_count_but_for_their_rewards():
    """Their tokens, and what failed on them, under numbers of their own."""
    first, begun, failing = (group(0, (1.0, 1.0), (2, 3)), group(1, (1.0, 1.0), (4, 5)),
                             group(0, (None,), (7,), ("stop",)))
    begun.prompt = begun.prompt._replace(drawn=2)
    failing.failures.append(Failure("r", 0, "OSError: gone", ""))
    draw, rewards = greedy_rewards(Draw([first, begun], [begun, first], {"rollout": 1.0, "reward": 0.0}),
                                   lambda *_: [group(1, (0.5,), (1,), ("stop",)), failing])
    np.testing.assert_array_equal(rewards, [np.nan, np.nan, 0.5, 0.5])
    assert [each.number for each in draw.compared] == [2, 3]
    metrics = step_metrics(draw, {"rollout": 1.0, "update": 3.0}, num_dropped=4)
    assert metrics["count/sampled_tokens"] == 5 + 9 - 4 + 1 + 7
    assert (metrics["rewards/r/failures"], metrics["reward"], metrics["time_share/update"]) == (1, 1, 0.75)
    assert metrics["rows_dropped"] == 4
    assert draw.seconds["rollout"] >= 1
