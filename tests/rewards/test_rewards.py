"""The --rewards flag, and what becomes of the rewards' values: weights, None, exceptions, timeouts and bad values."""

import asyncio
import math
import sys
import threading
import time
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from sandboxed import needs_sandbox

from errors import InputError
from rewards import calls, scoring
from rewards.calls import running
from rewards.contract import RowErrors, time_left
from rewards.registry import Weighted, load_rewards
from rewards.scoring import check_columns, compute_rewards

MODULE = """
def words(prompts, completions, *, scale=1.0, **columns):
    return [scale * len(completion.split()) for completion in completions]

async def later(prompts, completions, **columns):
    return [2.0] * len(completions)

def needs(prompts, completions, answer, **columns):
    raise AssertionError("asked")

def bare(prompts, completions):
    raise AssertionError("asked")

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("undefined")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_rewards", None)


def score(*functions, completions=("a b", "c", ""), timeout=20.0, weights=(), **columns):
    rewards = [Weighted(f"r{i}", weight, function)
               for i, (function, weight) in enumerate(zip(functions, [*weights, *[1.0] * len(functions)]))]
    return compute_rewards(rewards, ["?"] * len(completions), list(completions), columns, timeout)


def constant(*values):
    return lambda prompts, completions, **columns: list(values)


def names_and_weights(text):
    return [(reward.name, reward.weight) for reward in load_rewards(text)]


@pytest.mark.parametrize(("text", "expected"), [
    ("math", [("math", 1.0)]),
    ("math=0.5, math_format=-2 ,math_strict", [("math", 0.5), ("math_format", -2.0), ("math_strict", 1.0)]),
    ("overlong(max_length=20, cache=4)=1e-1,repetition", [("overlong", 0.1), ("repetition", 1.0)]),
    ("format(pattern='a=1,(b')", None),
    (r"format(pattern=r'a=\(1,2')=3,length(target=3)", [("format", 3.0), ("length", 1.0)]),
    ("my_rewards:words(scale=2.0)=3,my_rewards.later", [("my_rewards:words", 3.0), ("my_rewards.later", 1.0)]),
    pytest.param("gym:chain_sum(min_terms=2),gym_exact:chain_sum=0", [
        ("gym:chain_sum", 1.0), ("gym_exact:chain_sum", 0.0)], marks=needs_sandbox),
    ("judge:http://127.0.0.1:1/a=2,judge(url='http://127.0.0.1:1/?a=b')", [("judge:http://127.0.0.1:1/a", 2.0),
                                                                           ("judge", 1.0)]),
])
def test_flags(text, expected):
    if expected is None:
        with pytest.raises(InputError, match="no regular expression"):
            load_rewards(text)
    else:
        assert names_and_weights(text) == expected


@pytest.mark.parametrize(("text", "message"), [
    ("nothing", "no reward is called 'nothing'; give math, .*gym:TASK.*package.module:function"),
    ("no_such.module:f", "names no function .*No module named 'no_such'"),
    ("my_rewards:absent", "names no function .*no attribute 'absent'"),
    ("my_rewards:number", "names no function"),
    ("my_rewards:words(1)", "arguments must be given by name"),
    ("math,math=2", "math is given twice"),
    ("math=high", "the weight 'high' is no finite number"),
    ("math=nan", "the weight 'nan' is no finite number"),
    ("math=", "the weight '' is no finite number"),
    ("math=1=2", "names no|cannot be read|no reward is called"),
    ("", "names none"),
    ("math,,math_format", "names none"),
    ("math(", "brackets do not close"),
    ("math(seconds=1)", "unexpected keyword argument 'seconds'; it takes .timeout"),
    ("math:algebra", "math takes nothing behind a colon"),
    ("math_format:x", "math_format takes nothing behind a colon"),
    ("gym", "missing a required argument: 'task'"),
    ("gym:chain_sm", "no such task; give one like chain_sum"),
    ("format(pattern='(')", "no regular expression"),
    ("format(pattern='a', match='any')", "match is 'any'; it takes one of fullmatch, search"),
    ("math(timeout='long')", "timeout is 'long'; it takes timeout: float"),
    ("math(timeout=0)", "timeout is 0.0"),
    ("overlong(max_length=1.5, cache=1)", "max_length is 1.5; it takes max_length: int"),
    ("judge:http://h(retries='x')", "retries is 'x'"),
    ("overlong(max_length=4, cache=5)", "cache 5 is more than max_length 4"),
    ("length(target=0)", "target is 0; give a whole number of tokens"),
    ("judge:ftp://host", "no http:// or https:// address"),
    ("judge:http://h?key=1", "write judge.url='...'. for a URL with a query"),
    ("broken_rewards:f", "names no function .*NameError: name 'undefined'"),
])
def test_flags_that_cannot_be_read_end_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as error:
        load_rewards(text)
    assert "\n" not in str(error.value)


def test_options_go_to_those_that_take_them(monkeypatch):
    seconds = []
    pool = SimpleNamespace(verdicts=lambda calls, stored, timeout: seconds.append(timeout) or [1.0])
    monkeypatch.setattr("rewards.text.pool", lambda *_, **__: pool)
    for text in ("format(pattern='a'),my_rewards:words", "format(pattern='a', timeout=1),my_rewards:words"):
        [reward, mine] = load_rewards(text, timeout=0.5, scale=7.0)
        assert (reward.function(["?"], ["a"]), mine.function(["?"], ["a b"])) == ([1.0], [2.0])
    assert seconds == [0.5, 1.0]


def test_arguments_of_a_path_are_bound():
    [words, later] = load_rewards("my_rewards:words(scale=2.0)=3,my_rewards.later")
    scored = compute_rewards([words, later], ["?"] * 2, ["a b", "c"], {}, 20.0)
    assert scored.values == {"my_rewards:words": [4.0, 2.0], "my_rewards.later": [2.0, 2.0]}
    assert scored.totals == [14.0, 8.0]


def test_functions_see_what_they_were_promised():
    def reward(prompts, completions, completion_ids, level, note):
        assert (prompts, completions, completion_ids, note) == (["?"] * 3, ["a b", "c", ""], [[1], [2], []], "all")
        return level

    scored = score(reward, completion_ids=[[1], [2], []], level=[1, 2.5, True], note="all")
    assert scored.values["r0"] == [1.0, 2.5, 1.0]
    assert all(type(value) is float for value in scored.values["r0"])


def test_functions_are_called_by_name_as_trl_does():
    seen = score(lambda completions, prompts, **_: [len(each) for each in completions],
                 lambda completions, **_: [1.0] * len(completions),
                 lambda completions, kind, **_: [float(each) for each in kind], kind=[3, 4, 5])
    assert list(seen.values.values()) == [[3.0, 1.0, 0.0], [1.0, 1.0, 1.0], [3.0, 4.0, 5.0]]


def test_functions_that_cannot_take_the_columns_are_named():
    with pytest.raises(InputError, match="reward r0: cannot be called with the columns level .*take .prompts, comp"):
        score(lambda prompts, completions: [1.0] * 3, level=[1, 2, 3])
    with pytest.raises(InputError, match="reward r0: .*missing a required argument: 'answer'.*FILE.NAME=THEIRS"):
        score(lambda prompts, completions, answer, **columns: [1.0] * 3, level=[1, 2, 3])


@pytest.mark.parametrize(("text", "names", "message"), [
    ("math", ["question"], "no column 'answer' or 'solution' .* only completion_ids, question"),
    ("math_strict", ["solution"], None),
    ("my_rewards:words,math", ["answers"], "no column 'answer'"),
    ("my_rewards:words,repetition,overlong(max_length=4, cache=2)", [], None),
    ("my_rewards:words(scale=2.0)", ["scale"], None),
    ("my_rewards.needs", ["kind"], "reward my_rewards.needs: .*missing a required argument: 'answer'"),
    ("my_rewards.needs", ["answer", "kind"], None),
    ("my_rewards.bare", ["answer"], "reward my_rewards.bare: cannot be called with the columns answer"),
    pytest.param("gym:chain_sum", ["answer"], "no column 'metadata' to score chain_sum with", marks=needs_sandbox),
    pytest.param("gym_exact:chain_sum", ["answer", "metadata"], None, marks=needs_sandbox),
    pytest.param("unit_tests", ["answer"], "unit tests are in a column test_list, tests or test", marks=needs_sandbox),
    pytest.param("programs_share", ["test"], "examples of input and output are in a column", marks=needs_sandbox),
    pytest.param("programs", ["input_output"], None, marks=needs_sandbox),
])
def test_columns_that_are_missing_are_told_before_anything_is_asked(text, names, message):
    rewards = load_rewards(text)
    if message is None:
        check_columns(rewards, names)
    else:
        with pytest.raises(InputError, match=message):
            check_columns(rewards, names)


def test_zero_none_and_an_exception_stay_three_things():
    def raises(prompts, completions, **columns):
        if "c" in completions:
            raise KeyError("c\nis wrong")
        return [1.0] * len(completions)

    scored = score(constant(0.0, 0.0, None), constant(None, None, None), raises)
    assert scored.values == {"r0": [0.0, 0.0, None], "r1": [None] * 3, "r2": [1.0, None, 1.0]}
    assert scored.totals == [1.0, None, 1.0]  # what is left of a sum is another reward
    assert (scored.exceptions, scored.timeouts) == ({"r0": 0, "r1": 0, "r2": 1}, {"r0": 0, "r1": 0, "r2": 0})
    [failure] = scored.failures
    assert failure[:-1] == ("r2", 1, r"KeyError: 'c\nis wrong'", "c")
    assert f'File "{__file__}"' in failure.traceback
    assert failure.traceback.endswith("KeyError: 'c\\nis wrong'\n")
    assert score(constant(None, 0.0, None)).totals == [None, 0.0, None]


def test_weights():
    assert score(constant(1.0, 2.0, None), constant(1.0, None, None), weights=(0.5, -2.0)).totals == [-1.5, 1.0, None]
    assert score(constant(1.0, None, 1.0), constant(5.0, 5.0, 5.0), weights=(1.0, 0.0)).totals == [1.0, None, 1.0]


def test_a_failure_of_what_is_only_looked_at_takes_no_total_away():
    def fails(prompts, completions, **columns):
        raise RowErrors([1.0, None, None], {1: TimeoutError("slow"), 2: ValueError("bad")})

    assert score(constant(1.0, 2.0, 3.0), fails, weights=(1.0, 0.0)).totals == [1.0, 2.0, 3.0]
    assert score(constant(1.0, 2.0, 3.0), fails).totals == [2.0, None, None]


def test_a_batch_that_fails_where_no_row_does_is_told():
    def raises(prompts, completions, **columns):
        if len(completions) > 1:
            raise ValueError("too many")
        return [1.0]

    scored = score(raises)
    assert (scored.values["r0"], scored.exceptions["r0"]) == ([1.0] * 3, 1)
    assert [(failure.row, failure.error, failure.completion) for failure in scored.failures] == [
        (None, "ValueError: too many", "")]


def test_columns_are_cut_to_the_row_that_is_asked_alone():
    seen = []

    def raises(prompts, completions, **columns):
        seen.append((prompts, columns))
        raise ValueError("never")

    scored = score(raises, level=[1, 2, 3], note="all", array=np.arange(3))
    assert [(prompts, columns["level"], columns["note"], len(columns["array"])) for prompts, columns in seen[1:]] == [
        (["?"], [level], "all", 1) for level in (1, 2, 3)]
    assert (scored.values["r0"], scored.totals, scored.exceptions["r0"]) == ([None] * 3, [None] * 3, 3)


def test_what_a_reward_does_to_its_lists_changes_nothing_for_another():
    def empties(prompts, completions, level, **columns):
        values = [float(each) for each in level]
        for each in (prompts, completions, level):
            each.clear()
        if len(values) > 1:
            raise ValueError("and its rows are asked alone")
        return values

    scored = score(empties, constant(1.0, 2.0, 3.0), lambda prompts, completions, level, **_: [
        float(len(each)) + n for each, n in zip(completions, level)], level=[1, 2, 3])
    assert scored.values == {"r0": [1.0, 2.0, 3.0], "r1": [1.0, 2.0, 3.0], "r2": [4.0, 3.0, 3.0]}


def test_what_a_reward_does_to_messages_and_tokens_changes_nothing_for_another():
    def rude(prompts, completions, completion_ids, meta, **columns):
        for message, tokens, each in zip(completions, completion_ids, meta):
            message[0]["content"] = "mine"
            tokens.clear()
            each["levels"].append(1)
        return [0.0] * len(completions)

    messages, tokens, meta = [[{"role": "assistant", "content": "a"}]], [[1, 2]], [{"levels": [0]}]
    score(rude, completions=messages, completion_ids=tokens, meta=meta)
    assert messages == [[{"role": "assistant", "content": "a"}]]
    assert tokens == [[1, 2]]
    assert meta == [{"levels": [0]}]


def test_rows_that_a_reward_names_are_not_asked_again():
    calls = []

    def raises(prompts, completions, **columns):
        calls.append(len(completions))
        raise RowErrors([1.0, None, None], {1: TimeoutError("slow"), 2: ValueError("bad")})

    scored = score(raises)
    assert (calls, scored.values["r0"]) == ([3], [1.0, None, None])
    assert (scored.exceptions["r0"], scored.timeouts["r0"]) == (1, 1)


@pytest.mark.parametrize("stop", [SystemExit("bye"), RuntimeError("bad")])
def test_nothing_that_a_reward_raises_ends_the_run(stop):
    def raises(prompts, completions, **columns):
        raise stop

    assert score(raises).exceptions["r0"] == 3


def test_slow_rewards_are_given_up_in_time():
    def slow(prompts, completions, **columns):
        time.sleep(20)
        return [1.0] * len(completions)

    async def slow_too(prompts, completions, **columns):
        await asyncio.sleep(20)

    def minds_the_time(prompts, completions, **columns):
        assert 0.0 < time_left() <= 0.3
        time.sleep(time_left() + 0.1)
        raise RowErrors([1.0, 1.0, None], {2: TimeoutError("late")})

    started = time.monotonic()
    scored = score(slow, slow_too, minds_the_time, constant(1.0, 1.0, 1.0), timeout=0.3)
    assert time.monotonic() - started < 5
    assert scored.values == {"r0": [None] * 3, "r1": [None] * 3, "r2": [1.0, 1.0, None], "r3": [1.0] * 3}
    assert scored.timeouts == {"r0": 3, "r1": 3, "r2": 1, "r3": 0}
    assert sum(scored.exceptions.values()) == 0
    assert scored.totals == [None] * 3


@pytest.mark.parametrize(("slow", "coroutine"), [({0}, False), ({1, 4, 5}, False), ({3, 5}, True)])
def test_slow_rows_take_no_value_from_the_others(slow, coroutine, capsys, monkeypatch):
    monkeypatch.setattr(scoring, "PATIENCE", 0.2)
    monkeypatch.setattr(scoring, "GRACE", 0.2)
    calls.warn_of_late.cache_clear()
    asked = []

    def reward(prompts, completions, level, **columns):
        asked.append(len(completions))
        if slow & set(level):
            raise_late()
        return [float(each) for each in level]

    async def waits(prompts, completions, level, **columns):
        asked.append(len(completions))
        await asyncio.gather(*(asyncio.sleep(20) for each in level if each in slow))
        return [float(each) for each in level]

    def raise_late():
        over.wait(20)
        raise ValueError("nobody sees this")

    over = threading.Event()
    scored = score(waits if coroutine else reward, completions="abcdef", level=list(range(6)), timeout=1.0)
    over.set()
    assert scored.totals == [None if row in slow else row for row in range(6)]
    assert (scored.timeouts["r0"], scored.exceptions["r0"]) == (len(slow), 0)
    assert [failure.row for failure in scored.failures] == sorted(slow)
    assert sorted(asked) == [*[1] * 6, 6]
    assert ("warning: reward r0 was not done in its time" in capsys.readouterr().err) == (not coroutine)


def test_many_slow_rows_do_not_take_all_threads(monkeypatch):
    over, alone = threading.Event(), []

    def reward(prompts, completions, **columns):
        alone.append(len(completions))
        over.wait(20)

    monkeypatch.setattr(scoring, "GRACE", 0.1)
    monkeypatch.setattr(scoring, "PATIENCE", 0.2)
    monkeypatch.setattr(scoring, "AT_ONCE", 4)
    assert score(reward, completions="x" * 40, timeout=0.5).timeouts["r0"] == 40
    over.set()
    assert len(alone) == 5


def test_calls_that_never_end_do_not_grow_without_bound(monkeypatch):
    for name, value in {"GRACE": 0.1, "PATIENCE": 0.2, "NEVER_ENDING": 8}.items():
        monkeypatch.setattr(scoring, name, value)
    over, name = threading.Event(), "never ends"

    def reward(prompts, completions, **columns):
        over.wait(60)

    for _ in range(4):
        compute_rewards([Weighted(name, 1.0, reward)], ["?"] * 6, ["x"] * 6, {}, 0.2)
    assert 8 < running(name) <= 12  # the last calls are of all rows together
    over.set()


def test_a_thread_that_is_late_ends_at_its_next_step(monkeypatch):
    monkeypatch.setattr(scoring, "GRACE", 0.1)
    monkeypatch.setattr(calls, "CANCELLING", 0.1)
    others = threading.enumerate()

    def spins(prompts, completions, **columns):
        while True:
            try:
                sum(range(100))
            except Exception:  # noqa: BLE001 - as users write it
                continue

    async def blocks(prompts, completions, **columns):
        spins(prompts, completions)

    assert score(spins, blocks, timeout=0.2).timeouts == {"r0": 3, "r1": 3}
    for thread in set(threading.enumerate()) - set(others):
        thread.join(20)
        assert not thread.is_alive()


def test_what_minds_its_time_is_not_interrupted():
    ended = threading.Event()

    def minds(prompts, completions, **columns):
        try:
            while time_left() > -0.3:
                time.sleep(0.01)
        finally:
            ended.set()
        return [1.0] * len(completions)

    assert score(minds, timeout=0.2).totals == [1.0] * 3  # within its grace
    assert ended.is_set()


def test_what_minds_its_time_is_asked_once():
    calls = []

    def minds(prompts, completions, **columns):
        calls.append(len(completions))
        while time_left() > 0.01:
            time.sleep(0.01)
        raise RowErrors([1.0, None, None], {1: TimeoutError("late"), 2: TimeoutError("late")})

    assert score(minds, timeout=0.5).values["r0"] == [1.0, None, None]
    assert calls == [3]


def test_what_is_done_at_last_is_not_given_up_for_rows_asked_alone():
    def reward(prompts, completions, **columns):
        time.sleep(0.5 if len(completions) > 1 else 20 * (completions == ["c"]))
        return [1.0 if len(completions) > 1 else 2.0] * len(completions)

    assert score(reward, timeout=0.4).totals == [1.0] * 3


def test_asking_row_by_row_ends_in_time():
    def raises(prompts, completions, **columns):
        time.sleep(0.2)
        raise ValueError("no")

    started = time.monotonic()
    scored = score(raises, completions=["x"] * 50, timeout=0.7)
    assert time.monotonic() - started < 4
    assert scored.exceptions["r0"] + scored.timeouts["r0"] == 50
    assert scored.exceptions["r0"] >= 1


def test_coroutines_are_waited_for():
    async def waits(prompts, completions, level, **columns):
        await asyncio.sleep(0.01)
        if None in level:
            raise ValueError("no level")
        return level

    assert score(waits, level=[1.0, 2.0, 3.0]).values["r0"] == [1.0, 2.0, 3.0]
    assert score(waits, level=[1.0, None, 3.0]).values["r0"] == [1.0, None, 3.0]


@pytest.mark.parametrize("values", [np.float32([1, 2, 3]), jnp.asarray([1, 2, 3]), (np.int64(1), jnp.asarray(2.0), 3),
                                    [np.ones(1), np.asarray(2), 3.0]])
def test_numbers_of_every_kind(values):
    assert score(lambda prompts, completions, **columns: values).values["r0"] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("given", "message"), [
    ([1.0, 2.0], "reward r0: gave 2 values for 3 rows"),
    ([1.0] * 4, "reward r0: gave 4 values for 3 rows"),
    ([1.0, math.nan, 1.0], "reward r0: gave nan for row 1"),
    ([1.0, 1.0, -math.inf], "reward r0: gave -inf for row 2"),
    ([1.0, 10**400, 1.0], "reward r0: gave 1000000.* for row 1"),
    ([1.0, 1.0, -1e300], "reward r0: gave -1e.300 for row 2"),
    ([1.0, "1.0", 1.0], "reward r0: gave '1.0' for row 1"),
    ([1.0, [1.0], 1.0], r"reward r0: gave \[1.0\] for row 1"),
    ([1.0, 1j, 1.0], "reward r0: gave 1j for row 1"),
    (None, "reward r0: gave NoneType, not a list"),
    (1.0, "reward r0: gave float, not a list"),
    ("abc", "reward r0: gave str, not a list"),
    ({1: 1.0, 2: 1.0, 3: 1.0}, "reward r0: gave dict, not a list"),
])
def test_what_is_no_list_of_finite_numbers_ends_in_one_line(given, message):
    with pytest.raises(InputError, match=message):
        score(lambda prompts, completions, **columns: given)


def test_weights_that_make_too_much_of_a_reward_end_in_one_line():
    with pytest.raises(InputError, match="rewards times their weights give"):
        score(constant(1e20, 1.0, 1.0), weights=[1e20])


def test_a_bad_value_of_a_single_row_names_the_row_of_the_batch():
    def raises(prompts, completions, level, **columns):
        if len(completions) > 1:
            raise ValueError("too many")
        return level

    with pytest.raises(InputError, match="gave nan for row 2"):
        score(raises, level=[1.0, 2.0, math.nan])


def test_what_a_reward_says_of_bad_input_ends_the_run():
    with pytest.raises(InputError, match="no column 'answer'"):
        score(load_rewards("math")[0].function)
    with pytest.raises(InputError, match="column 'completion_ids' is missing"):
        score(load_rewards("repetition")[0].function)


def test_no_rows_and_no_rewards():
    assert score(constant(), completions=()).totals == []
    assert score().totals == [None] * 3


def values(text, completions, **columns):
    [reward] = load_rewards(text)
    return reward.function(["?"] * len(completions), completions, **columns)


def test_formats():
    texts = ["<a>1\n2</a>", "so <a>1</a>", "", [{"role": "assistant", "content": "<a>é</a>"}]]
    assert values("format(pattern='<a>.*</a>')", texts) == [1.0, 0.0, 0.0, 1.0]
    assert values("format(pattern='<a>.*</a>', match='search')", texts) == [1.0, 1.0, 0.0, 1.0]
    assert values(r"format(pattern='\d+')", ["12", "1a"]) == [1.0, 0.0]
    assert values("format(pattern='x*')", ["x" * 1_000_000]) == [1.0]
    assert values("format(pattern='(a+)+b', timeout=1)", ["a" * 60, "aab"]) == [0.0, 1.0]


def test_lengths_are_tokens():
    ids = [[7] * length for length in (0, 5, 6, 8, 10, 11, 40)]
    texts = ["a long text of few tokens"] * len(ids)
    overlong = values("overlong(max_length=10, cache=4)", texts, completion_ids=ids)
    assert overlong == [0.0, 0.0, 0.0, -0.5, -1.0, -1.0, -1.0]
    assert values("length(target=10)", texts, completion_ids=ids) == [-1.0, -0.5, -0.4, -0.2, 0.0, -0.1, -1.0]


def test_repetition():
    ids = [[], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2] * 4, [9] * 103]
    expected = [0.0, 0.0, 0.0, 2 / 5 - 1, 1 / 100 - 1]
    assert values("repetition", [""] * 5, completion_ids=ids) == pytest.approx(expected)
    assert values("repetition(n=1)", [""] * 2, completion_ids=[[1, 1], [1, 2]]) == [-0.5, 0.0]
