"""Programs of contests: each reads the input of an example and has to print its output; or, where the examples are of a
function, has to return its value.

A program never sees an output that is wanted: what it printed is compared outside its sandbox. Functions are tested as
unit tests are, in two processes.
"""

import collections
import json
import math
from collections.abc import Sequence
from typing import Any

from errors import InputError
from rewards.code_text import code_of, script_of
from rewards.contract import Reward, values_or_raise
from rewards.examples import COLUMNS, Example, check_columns, read_examples, same_output
from rewards.execution.load import parsed
from rewards.execution.packages import allowed, as_names
from rewards.execution.sandbox import Limits, check_sandbox
from rewards.execution.trial import BadTestsError, Setting, as_script
from rewards.execution.turns import Turn, in_turns
from rewards.unit_tests import Case, Isolation, Tally, judge_case

_FURTHER = ("metadata", "fn_name", "func_name", "starter_code")
IMPORTS = """from typing import *
from collections import *
from functools import *
from itertools import *
from heapq import *
from bisect import *
import bisect, collections, copy, datetime, functools, heapq, itertools, math, operator, random, re, string, sys
from math import ceil, comb, factorial, floor, gcd, hypot, inf, isqrt, lcm, log, log2, log10, pi, prod, sqrt
from copy import deepcopy
"""
"""what the sites of such functions import before a solution"""
SAME = """
def same(got, wanted, tolerance):
    if isinstance(got, (list, tuple)) and isinstance(wanted, (list, tuple)):
        return len(got) == len(wanted) and all(same(a, b, tolerance) for a, b in zip(got, wanted))
    if isinstance(got, dict) and isinstance(wanted, dict):
        keys = {str(key): value for key, value in got.items()}
        return keys.keys() == set(map(str, wanted)) and all(same(keys[str(k)], v, tolerance) for k, v in wanted.items())
    if isinstance(got, float) or isinstance(wanted, float):
        numbers = isinstance(got, (int, float)) and isinstance(wanted, (int, float))
        return numbers and (got == wanted or abs(got - wanted) <= tolerance * max(1.0, abs(wanted)))
    return type(got) in (int, str, bool, type(None)) and got == wanted
"""
"""as JSON has values: tuples are lists, keys are texts"""


def make_programs(timeout: float = 6.0, memory_mb: int = 512, unsafe: bool = False, share: bool = False,
                  workers: int | None = None, isolation: Isolation = "strict", packages: Sequence[str] | None = None,
                  tolerance: float = 1e-6, max_examples: int = 0) -> Reward:
    """A reward function: 1.0 where a program does right in all of its row's examples, else 0.0; None without examples.

    `timeout` is in seconds of a program's own time for each example (for all of them together, where they are of a
    function). `share`: the share of the examples. `tolerance` is that of numbers with a fraction. `max_examples` of a
    row are tried, the first ones; 0: all. The others are unit_tests' own, and so is what is raised, InputError for
    a negative tolerance or number of examples besides.
    """
    if not 0 <= tolerance < math.inf or max_examples < 0:
        raise InputError(f"reward programs: tolerance {tolerance} and max_examples {max_examples} must be 0 or more, "
                         f"the tolerance finite")
    if not unsafe:
        check_sandbox()
    setting = Setting(Limits(seconds=timeout, memory_mb=memory_mb), allowed(as_names(packages)), unsafe)
    tally = Tally("programs_share" if share else "programs")

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        check_columns(columns)
        ways: collections.Counter[str] = collections.Counter()
        rows = [{name: columns[name][row] for name in (*COLUMNS, *_FURTHER) if columns.get(name) is not None}
                for row in range(len(completions))]

        def judge(row: int, turn: Turn) -> float:
            examples = _examples(rows[row])[: max_examples or None]
            if examples[0].function:
                code = code_of(completions[row])
                case = case_of(examples, code, tolerance)
                passed = judge_case(case, IMPORTS + code, isolation, setting, turn, ways).passed
            else:
                passed = passed_by(script_of(completions[row]), examples, setting, turn, tolerance, share)
            return passed / len(examples) if share else float(passed == len(examples))

        with_examples = [row for row, each in enumerate(rows) if any(each.get(name) for name in COLUMNS)]
        outcomes = in_turns(judge, with_examples, timeout, workers)
        tally.add(ways, len(outcomes))
        return values_or_raise([outcomes.get(row) for row in range(len(rows))])

    reward.__name__ = "programs_share" if share else "programs"
    reward.check_columns = check_columns
    return reward


def _examples(row: dict[str, Any]) -> list[Example]:
    try:
        found = read_examples(row)
    except ValueError as error:
        raise BadTestsError(str(error)) from None
    if not found:
        raise BadTestsError("its examples are empty lists")
    return found


def passed_by(program: str, examples: Sequence[Example], setting: Setting, turn: Turn, tolerance: float,
              all_of_them: bool) -> int:
    """How many examples a program does right; unless all of them are asked for, up to the first that it does not."""
    passed = 0
    for example in examples:
        output = as_script(program, example.given, setting, turn, 2 * len(example.wanted) + 65536)
        right = output is not None and same_output(output, example.wanted, tolerance)
        passed += right
        if not right and not all_of_them:
            break
    return passed


def case_of(examples: Sequence[Example], code: str, tolerance: float) -> Case:
    """The examples of a function as unit tests: of Solution's method where the code has such a class."""
    tree = parsed(code)
    classes = {node.name for node in tree.body if type(node).__name__ == "ClassDef"} if tree else set()
    name = f"Solution().{examples[0].function}" if "Solution" in classes else examples[0].function
    tests = [f"_given, _wanted = json.loads({json.dumps([each.given, each.wanted])!r})\n_got = {name}(*_given)\nassert "
             f"same(_got, _wanted, {tolerance!r}) or isinstance(_wanted, list) and len(_wanted) == 1 and "
             f"same(_got, _wanted[0], {tolerance!r})" for each in examples]
    return Case(["import json" + SAME], tests)
