"""Groups graded next to sampling: together where rewards are slower, each in its time, errors where they are asked."""

import asyncio
import math
import threading
import time

import pytest

from errors import InputError
from rewards import scoring
from rewards.contract import RowErrors, on_device, time_left
from rewards.registry import Weighted
from rewards.scoring import compute_rewards
from rollouts.grading import Grading


def weighted(*functions):
    return [Weighted(f"r{i}", 1.0, function) for i, function in enumerate(functions)]


def lengths(prompts, completions, **columns):
    return [float(len(completion)) for completion in completions]


def add(grading, number, *completions, **columns):
    grading.add(number, ["?"] * len(completions), list(completions), columns)


def until(grading, count):
    """What finished() gives, until it has given so much."""
    given = {}
    while len(given) < count:
        given |= grading.finished()
        time.sleep(0.005)
    return given


def grade(functions, groups, timeout=20.0, **options):
    with Grading(weighted(*functions), timeout, **options) as grading:
        for number, completions in groups.items():
            add(grading, number, *completions)
        return dict(grading.wait())


def test_groups_are_graded_as_they_come():
    with Grading(weighted(lengths, lambda completions, **_: [1.0] * len(completions)), 20.0) as grading:
        add(grading, 7, "a", "bc")
        given = until(grading, 1)
        assert (list(given), given[7].values) == ([7], {"r0": [1.0, 2.0], "r1": [1.0, 1.0]})
        add(grading, 5, "abc", "")
        add(grading, 6, "d", "e")
        assert {number: scored.totals for number, scored in grading.wait()} == {5: [4.0, 1.0], 6: [2.0, 2.0]}
        assert list(grading.finished()) == list(grading.wait()) == []


def test_nothing_added_is_nothing_graded():
    with Grading(weighted(lengths), 20.0) as grading:
        assert list(grading.finished()) == list(grading.wait()) == []
    assert grade([], {1: "ab"})[1].totals == [None, None]


def test_what_came_while_a_reward_was_busy_is_asked_for_together():
    calls, begun, go_on = [], threading.Event(), threading.Event()

    def reward(prompts, completions, **columns):
        calls.append("".join(completions))
        begun.set()
        go_on.wait(20)
        return [1.0] * len(completions)

    with Grading(weighted(reward), 20.0) as grading:
        add(grading, 0, "a", "b")
        begun.wait(20)
        for number in range(1, 4):
            add(grading, number, "cd"[number % 2])
        assert list(grading.finished()) == []
        go_on.set()
        assert sorted(until(grading, 4)) == [0, 1, 2, 3]
    assert calls == ["ab", "dcd"]


def test_a_group_is_worth_what_it_is_alone():
    def reward(prompts, completions, level, **columns):
        if "c" in completions:
            raise RowErrors([None if each == "c" else 1.0 for each in completions],
                            {row: KeyError("c") for row, each in enumerate(completions) if each == "c"})
        return level

    def raises(prompts, completions, **columns):
        if "x" in completions:
            raise ValueError("x")
        return [None] * len(completions)

    groups = {3: ("a", "b"), 4: ("c", "x"), 9: ("x", "c", "a")}
    with Grading(weighted(reward, raises), 20.0) as grading:
        for number, completions in groups.items():
            add(grading, number, *completions, level=[1.0] * len(completions))
        together = dict(grading.wait())
    for number, completions in groups.items():
        n = len(completions)
        assert together[number] == compute_rewards(weighted(reward, raises), ["?"] * n, completions,
                                                   {"level": [1.0] * n}, 20.0)


def test_an_error_of_the_whole_that_no_row_shows_is_told_once():
    def raises(prompts, completions, **columns):
        if len(completions) > 1:
            raise ValueError("too many")
        return [1.0]

    hold = threading.Event()

    def waits(completions, **_):
        hold.wait(20)
        return [0.0] * len(completions)

    with Grading(weighted(waits, raises), 20.0) as grading:
        add(grading, 0, "a")
        for number in (1, 2):
            add(grading, number, "a", "b")
        hold.set()
        scored = dict(grading.wait())
    assert [scored[number].totals for number in range(3)] == [[1.0], [1.0, 1.0], [1.0, 1.0]]
    assert [len(scored[number].failures) for number in range(3)] == [0, 1, 0]  # of the call, not of each group


def test_rows_without_a_column_have_none_there():
    seen = {}

    def reward(prompts, completions, answer, **columns):
        seen.update(zip(completions, zip(answer, columns["level"], columns["other"])))
        return [0.0] * len(completions)

    with Grading(weighted(reward), 20.0, columns=("answer", "level", "other")) as grading:
        add(grading, 0, "a", "b", answer=[1, 2])
        add(grading, 1, "c", level=[3])
        assert len(dict(grading.wait())) == 2
    assert seen == {"a": (1, None, None), "b": (2, None, None), "c": (None, 3, None)}


@pytest.mark.parametrize("group", [0, 1])
def test_a_bad_value_is_raised_where_groups_are_asked_for_and_names_the_row(group):
    def reward(prompts, completions, **columns):
        return [math.nan if each == "bad" else 1.0 for each in completions]

    rows = [["a", "b", "c"], ["d", "e", "f"]]
    rows[group][2] = "bad"
    with pytest.raises(InputError, match=f"reward r0: gave nan for row 2 of group {group + 10};"):
        grade([reward], {number + 10: row for number, row in enumerate(rows)})


@pytest.mark.parametrize("ask", ["finished", "wait"])
def test_what_a_reward_says_of_bad_input_is_raised_by(ask):
    def reward(prompts, completions, **columns):
        raise InputError("no column 'answer'")

    with Grading(weighted(reward), 20.0) as grading:
        add(grading, 0, "a")
        with pytest.raises(InputError, match="no column 'answer'"):
            list(grading.wait()) if ask == "wait" else until(grading, 1)


def test_a_reward_that_hangs_on_early_groups_takes_nothing_from_later_ones(monkeypatch):
    monkeypatch.setattr(scoring, "PATIENCE", 0.2)
    monkeypatch.setattr(scoring, "GRACE", 0.2)
    begun, hang = threading.Event(), threading.Event()

    def reward(prompts, completions, **columns):
        if "slow" in completions:
            begun.set()
            hang.wait(20)
        return [1.0] * len(completions)

    started = time.monotonic()
    with Grading(weighted(reward, lengths), 0.5) as grading:
        add(grading, 0, "slow", "b")
        begun.wait(20)
        add(grading, 1, "c")
        scored = dict(grading.wait())
    hang.set()
    assert time.monotonic() - started < 10
    assert (scored[0].values, scored[0].timeouts) == ({"r0": [None, 1.0], "r1": [4.0, 1.0]}, {"r0": 1, "r1": 0})
    assert (scored[1].totals, scored[1].failures) == ([2.0], [])


def test_leaving_early_ends_what_minds_its_time_and_all_that_waits():
    ended, begun = [], threading.Barrier(3)

    def minds(prompts, completions, **columns):
        assert time_left() > 0
        begun.wait(20)
        while time_left() > 0:
            time.sleep(0.01)
        ended.append("minds")
        raise ValueError("and is not asked row by row")

    async def coroutine(prompts, completions, **columns):
        begun.wait(20)
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            ended.append("coroutine")
            raise

    def never(prompts, completions, **columns):
        ended.append("never")

    others = threading.enumerate()
    with Grading(weighted(minds, never), 20.0) as one, Grading(weighted(coroutine, never), 20.0) as other:
        add(one, 0, "a", "b")
        add(other, 0, "a", "b")
        begun.wait(20)
        add(one, 1, "c")
    for thread in set(threading.enumerate()) - set(others):
        thread.join(20)
        assert not thread.is_alive()
    assert sorted(ended) == ["coroutine", "minds"]


def test_what_computes_on_the_device_is_asked_last_here_about_all():
    calls, slow = [], threading.Event()

    @on_device
    def device(prompts, completions, **columns):
        calls.append((threading.current_thread(), "".join(completions)))
        assert 0 < time_left() <= 20
        return [0.5] * len(completions)

    def host(prompts, completions, **columns):
        slow.wait(20)
        return [1.0] * len(completions)

    with Grading(weighted(device, host), 20.0) as grading:
        add(grading, 0, "a", "b")
        add(grading, 1, "c")
        slow.set()
        time.sleep(0.05)
        assert list(grading.finished()) == []
        scored = dict(grading.wait())
    assert [(thread, "".join(sorted(text))) for thread, text in calls] == [(threading.current_thread(), "abc")]
    assert (scored[0].totals, scored[1].values) == ([1.5, 1.5], {"r0": [0.5], "r1": [1.0]})


def test_a_bug_is_raised_too():
    with Grading(weighted(lengths), 20.0) as grading:
        grading._grade = lambda *_: 1 / 0
        add(grading, 0, "a")
        with pytest.raises(ZeroDivisionError):
            until(grading, 1)


