"""Programs that read an input and print an output, or whose function is called, as data sets of contests have them."""

import base64
import json
import pickle
import zlib

import pytest
from sandboxed import needs_sandbox

from errors import InputError
from rewards.contract import RowErrors
from rewards.examples import Example, read_examples, same_output
from rewards.programs import make_programs
from rewards.registry import load_rewards

DOUBLE = "n = int(input())\nprint(2 * n)"
APPS = {"input_output": json.dumps({"inputs": ["2\n", "5\n"], "outputs": ["4\n", "10\n"]})}
CASES = [{"input": "2", "output": "4", "testtype": "stdin"}, {"input": "5\n", "output": "10\n", "testtype": "stdin"}]
PACKED = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(CASES)))).decode()
SPELLINGS = {
    "APPS": APPS, "TACO, parsed": {"input_output": {"inputs": ["2\n", "5\n"], "outputs": ["4\n", "10\n"]}},
    "APPS, lists of lines": {"input_output": json.dumps({"inputs": [["2"], ["5"]], "outputs": [["4"], ["10"]]})},
    "CodeContests": {"public_tests": {"input": ["2"], "output": ["4"]}, "private_tests": {"input": [], "output": []},
                     "generated_tests": {"input": ["5"], "output": ["10"]}},
    "LiveCodeBench": {"public_test_cases": json.dumps(CASES[:1]), "private_test_cases": json.dumps(CASES[1:])},
    "LiveCodeBench, packed": {"private_test_cases": PACKED, "metadata": "{}"},
    "test_cases": {"test_cases": CASES}, "tests": {"tests": json.dumps(CASES)},
    "verification_info": {"verification_info": json.dumps({"language": "python", "test_cases": [
        {"type": "stdin_stdout"} | each for each in CASES]})},
}
FUNCTIONS = {
    "APPS": {"input_output": json.dumps({"fn_name": "f", "inputs": [[2, [1]], [5, []]], "outputs": [[[1, 2]], [[5]]]})},
    "LiveCodeBench": {"public_test_cases": json.dumps([
        {"input": "2\n[1]", "output": "[1, 2]", "testtype": "functional"},
        {"input": "5\n[]", "output": "[5]", "testtype": "functional"}]), "metadata": json.dumps({"func_name": "f"})}}
FUNCTIONS["APPS, lines of JSON"] = {"input_output": json.dumps({
    "fn_name": "f", "inputs": ["2\n[1]", "[5, []]"], "outputs": ["[1, 2]", "[5]"]})}
FUNCTIONS["LiveCodeBench, closed lines"] = {"public_test_cases": json.dumps([
    {"input": "2\n[1]\n", "output": "[1, 2]\n", "testtype": "functional"},
    {"input": "5\n[]\n\n", "output": "[5]", "testtype": "functional"}]), "metadata": json.dumps({"func_name": "f"})}
APPEND = "def f(x, to: List[int]): return to + [x]"
METHOD = "class Solution:\n    def f(self, x: int, to: List[int]) -> List[int]:\n        return (*to, x)"


def rewarded(program, row, **options):
    reward = make_programs(**options)
    return reward([""], [program], **{name: [value] for name, value in row.items()})[0]


@pytest.mark.parametrize("name", SPELLINGS)
def test_examples_as_data_sets_spell_them(name):
    found = read_examples(SPELLINGS[name])
    assert [(each.given.strip(), each.wanted.strip(), each.function) for each in found] == [
        ("2", "4", None), ("5", "10", None)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_of_a_function(name):
    assert [(each.given, each.function) for each in read_examples(FUNCTIONS[name])] == [([2, [1]], "f"), ([5, []], "f")]


@pytest.mark.parametrize(("row", "message"), [
    ({"input_output": "no"}, "input_output holds no examples"), ({"tests": {"inputs": ["1"]}}, "KeyError: 'output"),
    ({"input_output": {"inputs": ["1"], "outputs": []}}, "1 inputs and 0 outputs"),
    ({"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(InputError()))).decode()}, "errors.InputError"),
    ({"public_test_cases": [{"input": "1", "output": "1", "testtype": "functional"}]}, "no metadata with func_name")])
def test_what_is_no_example_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        read_examples(row)


@pytest.mark.parametrize(("output", "wanted", "same"), [
    ("1 2\n3\n", "1 2 3", True), ("1 2", "1 3", False), ("1", "1 1", False), ("", "", True), ("a  b", "a\nb\n", True),
    ("0.3333333", "0.33333333", True), ("0.334", "0.333", False), ("3.0", "3", True), ("3", "3.000", True),
    ("1000000.5", "1000000.6", True), ("1e3", "1000.0", True), ("YES", "Yes", False), ("nan", "nan", True),
    ("nan", "1.0", False), ("inf", "1e999", False), ("10000000000000001", "10000000000000000", False),
    ("1_0.0", "10.0", False), ("٣.0", "3.0", False), ("-0.0", "0", True), (".", ".", True), ("e", "E", False)])
def test_outputs_are_compared_by_tokens(output, wanted, same):
    assert same_output(output, wanted, 1e-6) is same


@needs_sandbox
@pytest.mark.parametrize(("program", "value"), [
    (DOUBLE, 1.0), ("print(4)", 0.0), ("print(2 * int(input()), end='')", 1.0), (f"```python\n{DOUBLE}\n```", 1.0),
    ("import sys\nfor line in sys.stdin: print(int(line) * 2)", 1.0),
    ("import sys\nprint(2 * int(sys.stdin.buffer.read()))", 1.0), ("print(2 * int(open(0).read()))", 1.0),
    ("import os\nprint(2 * int(os.read(0, 99)))", 1.0),
    ("import fileinput\nprint(2 * int(next(fileinput.input())))", 1.0),
    ("import sys\ninput = sys.stdin.readline\nsys.stdout.write(str(2 * int(input())))", 1.0),
    ("def main():\n    print(2 * int(input()))\nif __name__ == '__main__':\n    main()", 1.0),
    ("import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(1 << 26)\n"
     "def f(n): return 0 if not n else 2 + f(n - 1)\ndef main(): print(f(int(input())))\n"
     "t = threading.Thread(target=main)\nt.start()\nt.join()", 1.0),
    (DOUBLE + "\nexit()", 1.0), (DOUBLE + "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)", 1.0),
    (DOUBLE + "\nraise SystemExit('no')", 0.0), (DOUBLE + "\n1 / 0", 0.0), ("print(2 * int(input())", 0.0),
    ("import numpy\nprint(int(numpy.int64(input()) * 2))", 1.0), ("while True: print(1)", 0.0), ("", 0.0),
    ("x = [0] * 10 ** 9\n" + DOUBLE, 0.0), ("import sys\nprint('4\\n10', file=sys.stderr)", 0.0)])
def test_programs(program, value):
    assert rewarded(program, APPS) == value


@needs_sandbox
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("isolation", ["strict", "auto"])
def test_functions(name, isolation):
    reward = make_programs(isolation=isolation)
    programs = [APPEND, METHOD, "def f(x, to): return [x] + to", "def g(x): return x", "import os\nos._exit(0)",
                "class E(list):\n    __eq__ = lambda s, o: True\nclass Solution:\n    def f(self, *a): return E()"]
    columns = {name: [value] * len(programs) for name, value in FUNCTIONS[name].items()}
    assert reward([""] * len(programs), programs, **columns) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@needs_sandbox
def test_a_program_is_ended_after_its_time_and_others_are_judged():
    reward = make_programs(timeout=1.0)
    rows = {name: [value] * 3 for name, value in APPS.items()}
    assert reward([""] * 3, ["while True: pass", DOUBLE, "import time\ntime.sleep(99)"], **rows) == [0.0, 1.0, 0.0]


@needs_sandbox
def test_the_share_of_examples_and_the_first_ones():
    row, program = SPELLINGS["CodeContests"], "print(4)"
    assert rewarded(program, row, share=True) == 0.5
    assert rewarded(program, row, max_examples=1) == 1.0
    assert load_rewards("programs_share")[0].function([""], [program], tests=[CASES]) == [0.5]


@pytest.mark.parametrize("options", [{"tolerance": -1e-6}, {"tolerance": float("nan")}, {"max_examples": -1}])
def test_a_negative_tolerance_or_number_of_examples_is_refused(options):
    with pytest.raises(InputError, match="must be 0 or more"):
        make_programs(unsafe=True, **options)


@needs_sandbox
def test_rows_without_examples_have_no_verdict():
    reward = make_programs()
    with pytest.raises(RowErrors, match="input_output holds no examples") as raised:
        reward([""] * 3, [DOUBLE] * 3, input_output=[APPS["input_output"], None, "what?"])
    assert raised.value.values == [1.0, None, None]
    with pytest.raises(InputError, match="there are answer"):
        reward([""], [DOUBLE], answer=["4"])


def test_an_example_is_given_and_wanted():
    assert Example("1", "2") == ("1", "2", None)
