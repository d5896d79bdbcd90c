"""Groups graded by three processes of a run: the values of one, with failures, delays and errors of one process."""

import json
import re

import pytest
from processes import WAIT, start_program

WORKER = """
import json, sys, time
from sharding import hosts
hosts.connect(hosts.HostsConfig(sys.argv[1], 3, int(sys.argv[2])))
import jax
from errors import InputError
from rewards.registry import Weighted
from rollouts import shares
from rollouts.grading import Grading
shares.LONG_WAIT = 0.3
me, called = jax.process_index(), []

def letters(prompts, completions, **columns):
    called.append(len(completions))
    if sys.argv[3] == "fails" and me == 1:
        raise OSError("no sandbox here")
    if sys.argv[3] == "late" and me == 2:
        time.sleep(60)
    if sys.argv[3] == "slow" and me == 1:
        time.sleep(1.5)
    if sys.argv[3] == "bad" and me == 2:
        return [float("nan")] * len(completions)
    return [None if each == "b" else float(len(each)) for each in completions]

def first(completions, extra, **_):
    return [float(value) for value in extra]

first.on_device = True
with hosts.lost_peers(), Grading([Weighted("letters", 1.0, letters), Weighted("first", 0.5, first)], 2.0) as grading:
    early = []
    for number in range(7):
        grading.add(number, ["?"] * 2, ["a" * number, "b"], {"extra": [number, 1]})
        early += grading.finished()
    try:
        graded = list(grading.wait())
    except InputError as error:
        graded = []
        print(json.dumps({"error": str(error)}))
    else:
        print(json.dumps({"graded": [[number, *vars(scored).values()] for number, scored in graded],
                          "called": sum(called), "early": len(early)}))
"""


def graded(what):
    """What each process has in the end, the same in all, and what they say on standard error."""
    processes = start_program(WORKER, what, ids=(0, 1, 2))
    printed = [process.communicate(timeout=WAIT) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, printed
    given = [json.loads(out.splitlines()[-1]) for out, _ in printed]
    assert given[0].get("graded") == given[1].get("graded") == given[2].get("graded")
    return given, [error for _, error in printed]


@pytest.mark.slow
def test_each_grades_its_share_and_all_have_all():
    given, errors = graded("well")
    assert [each["called"] for each in given] == [6, 4, 4]  # rows of groups 0 3 6, 1 4, 2 5
    assert [each["early"] for each in given] == [0, 0, 0]
    assert given[0]["graded"] == [[number, {"letters": [float(number), None], "first": [float(number), 1.0]},
                                   [1.5 * number, 0.5], {"letters": 0, "first": 0}, {"letters": 0, "first": 0}, []]
                                  for number in range(7)]
    assert "warning" not in "".join(errors)


@pytest.mark.slow
def test_what_fails_on_one_takes_no_value_from_the_others():
    for what, total in (("fails", [4, 0]), ("late", [0, 4])):
        given, errors = graded(what)
        groups = {number: rest for number, *rest in given[0]["graded"]}
        bad = 1 if what == "fails" else 2
        assert [totals for number, (_, totals, *_) in groups.items() if number % 3 == bad] == [[None, None]] * 2
        assert all(None not in totals for number, (_, totals, *_) in groups.items() if number % 3 != bad)
        assert [sum(rest[at]["letters"] for rest in groups.values()) for at in (2, 3)] == total
        late = f"warning: process {bad}: reward letters had no time for 4 rows, which have no verdict"
        assert [error.count(late) for error in errors] == [what == "late", 0, 0]


@pytest.mark.slow
def test_one_that_others_wait_for_is_named():
    _, errors = graded("slow")
    assert "warning: all waited for the rewards of process 1: " in errors[0]
    assert "warning" not in errors[1] + errors[2]


@pytest.mark.slow
def test_bad_values_of_one_are_an_error_of_all():
    given, _ = graded("bad")
    assert len({each["error"] for each in given}) == 1
    assert re.match("process 2: reward letters: gave nan for row [01] of group [25];", given[0]["error"])
