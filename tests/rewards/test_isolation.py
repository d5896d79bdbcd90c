"""Isolation: right programs pass, in two processes where these can run their tests, else in one; no cheat passes."""

from pathlib import Path

import pytest
from sandboxed import needs_sandbox

from errors import InputError
from rewards.contract import Clock, RowErrors, on_clock
from rewards.registry import load_rewards
from rewards.unit_tests import Tally, make_unit_tests

pytestmark = needs_sandbox
MODES = ("strict", "shared", "auto")
ONE_PROCESS = {"suppressing manager", "derived in the tests", "tests' own class", "tests' own nodes", "printed, mocked",
               "mocked library", "mocked helper", "a mock as an argument", "freeze time", "tmp_path", "signature",
               "dataclass, replaced", "a manager that changes its argument", "threads"}
"""what two processes cannot run"""
FIXTURES = Path(__file__).parents[1] / "fixtures" / "code"
SQUARE = "def f(x): return x * x"
TESTS = "assert f(2) == 4\nassert f(42) == 1764"
UNITTEST = ("import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(2), 4)\n"
            "    def test_b(self):\n        self.assertTrue(f(42) == 1764)")
PYTEST = ("import pytest\n@pytest.mark.parametrize('x, y', [(2, 4), (42, 1764)])\ndef test_a(x, y):\n"
          "    assert f(x) == pytest.approx(y)\ndef test_b():\n    with pytest.raises(TypeError):\n        f('a')")


def read_programs(name):
    """By name: a program and its tests."""
    blocks = (FIXTURES / name).read_text().split("\n=== ")[1:]
    titled = (block.partition("\n") for block in blocks)
    return {title: tuple(text.rstrip("\n").split("\n--- tests\n")) for title, _, text in titled}


RIGHT, CHEATS = read_programs("right.txt"), read_programs("cheats.txt")


def rewarded(programs, tests, **options):
    """By name of its row: its value, or the message of what went wrong."""
    reward = make_unit_tests(**{"timeout": 6.0, **options})
    try:
        values = reward([""] * len(programs), programs, test_list=tests)
    except RowErrors as failed:
        values = [str(failed.errors.get(row, value)) if value is None else value
                  for row, value in enumerate(failed.values)]
    return values


@pytest.mark.parametrize("isolation", ["strict", *(pytest.param(each, marks=pytest.mark.slow)
                                                   for each in ("shared", "auto"))])
def test_cheats_get_nothing(isolation):
    values = rewarded([program for program, _ in CHEATS.values()], [[tests] for _, tests in CHEATS.values()],
                      isolation=isolation, timeout=3.0)
    assert {name: value for name, value in zip(CHEATS, values) if value != 0.0} == {}


@pytest.mark.parametrize("isolation", ["auto", pytest.param("shared", marks=pytest.mark.slow)])
def test_right_programs_pass(isolation):
    values = rewarded([program for program, _ in RIGHT.values()],
                      [[tests] for _, tests in RIGHT.values()], isolation=isolation)
    assert {name: value for name, value in zip(RIGHT, values) if value != 1.0} == {}


def test_two_processes_run_all_but_what_needs_one():
    names = [name for name in RIGHT if name not in ONE_PROCESS]
    values = rewarded([RIGHT[name][0] for name in names],
                      [[RIGHT[name][1]] for name in names])
    assert {name: value for name, value in zip(names, values) if value != 1.0} == {}


def test_what_two_processes_cannot_run_has_no_verdict_and_says_so(capsys):
    program, tests = RIGHT["derived in the tests"]
    values = rewarded([program, SQUARE], [[tests], [TESTS]])
    assert values[1] == 1.0
    assert "not with isolation=strict: a test derives a class" in values[0]
    assert "unit_tests: 2 rows, 1 in two processes, 0 in one, 1 without a verdict" in capsys.readouterr().err


def test_which_way_rows_took_is_told(capsys):
    program, tests = RIGHT["derived in the tests"]
    assert rewarded([program, SQUARE], [[tests], [TESTS]], isolation="auto") == [1.0, 1.0]
    assert "unit_tests: 2 rows, 1 in two processes, 1 in one, 0 without" in capsys.readouterr().err


def test_a_reward_that_is_asked_often_says_it_seldom(capsys):
    tally = Tally("unit_tests")
    for _ in range(100):
        tally.add({"two processes": 7, "one process": 0, "none": 1}, 8)
    tally.add({"two processes": 7, "one process": 1, "none": 0}, 8)
    told = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == [f"reward unit_tests: {8 * 2**count} rows" for count in range(7)]


@pytest.mark.parametrize("isolation", MODES)
def test_the_styles_of_tests_pass_and_fail(isolation):
    """The tests under which cheats get nothing do pass for a right solution, and each fails for a wrong one."""
    tests = [[TESTS], [UNITTEST], [PYTEST]]
    assert rewarded([SQUARE] * 3, tests, isolation=isolation) == [1.0] * 3
    assert rewarded(["def f(x): return x + 2"] * 3, tests, isolation=isolation) == [0.0] * 3


def test_share_counts_methods_and_functions():
    reward = make_unit_tests(share=True)
    tests = [UNITTEST, "import pytest\n@pytest.mark.skip\ndef test_no(): pass\ndef test_a(tmp_path): assert f(2) == "
             "4\ndef test_b(): assert f(1) == 3\ndef test_c(): assert f(3) == 0"]
    assert reward([""] * 2, ["def f(x): return x + 2"] * 2, tests=tests) == [0.5, 2 / 3]


def test_isolation_is_a_bare_word_in_the_flag():
    reward = load_rewards("unit_tests(isolation=auto, packages=[numpy])=0.5")[0]
    program, tests = RIGHT["derived in the tests"]
    assert (reward.weight, reward.function([""], [program], tests=[tests])) == (0.5, [1.0])
    with pytest.raises(InputError, match="isolation is 'none'"):
        load_rewards("unit_tests(isolation=none)")


def test_packages_are_those_that_are_listed():
    numpy = "import numpy\ndef f(x): return int(numpy.sum(x))"
    assert rewarded([numpy], [["assert f([1, 2]) == 3"]]) == [1.0]
    assert rewarded([numpy], [["assert f([1, 2]) == 3"]], packages=["pytest"]) == [0.0]
    with pytest.raises(InputError, match="'no-such-package' is not installed here"):
        make_unit_tests(packages=["no-such-package"])


def test_endless_programs_take_no_verdict_from_others():
    """Six beside two right ones, in a time that the six alone would use up."""
    programs = [SQUARE, *["def f(x):\n    while True: pass"] * 6, SQUARE]
    reward = make_unit_tests(timeout=6.0, workers=2)
    with on_clock(Clock(8.0)):
        try:
            values, errors = reward([""] * 8, programs, test_list=[[TESTS]] * 8), {}
        except RowErrors as failed:
            values, errors = failed.values, failed.errors
    assert all("time was over before" in str(error) for error in errors.values())
    assert (values[0], values[-1]) == (1.0, 1.0)
    assert set(values[1:-1]) <= {0.0, None}
    assert values.count(0.0) >= 2


@pytest.mark.parametrize("isolation", MODES)
def test_the_helpers_of_a_stub_are_the_tests_and_the_programs(isolation):
    stub = 'def helper(x):\n    return x + 1\n\ndef f(x):\n    """Twice helper."""\n'
    row = {"prompt": [stub] * 2, "entry_point": ["f"] * 2,
           "test": ["def check(candidate):\n    assert candidate(1) == 2 * helper(1)"] * 2}
    reward = make_unit_tests(isolation=isolation)
    assert reward([""] * 2, ["    return 2 * helper(x)\n", "    return helper(x)\n"], **row) == [1.0, 0.0]
