"""Mathematics and reasoning-gym: right and wrong answers in many writings, and texts made to hang or to cheat."""

import json
import sys
import time

import pytest
from sandboxed import needs_sandbox

from data.sources import DataSource, open_source
from errors import InputError
from rewards.answers import boxed, completion_text, find_answer, marked_answer, strict_answer
from rewards.checked_eval import checked_eval
from rewards.contract import RowErrors
from rewards.gym import make_gym, make_gym_exact
from rewards.mathematics import make_math, make_math_format, make_math_strict
from rewards.registry import load_rewards

HANGS = [r"\boxed{" + r"\ln(" * 14 + "2" + ")" * 14 + "}", r"\boxed{" + r"\ln(" * 15 + "3" + ")" * 15 + "}"]
LENIENT, STRICT, FORMAT = make_math(timeout=10.0), make_math_strict(timeout=10.0), make_math_format()


@pytest.mark.parametrize(("text", "strict", "marked"), [
    ("", None, None),
    (r"\boxed{}", None, None),
    ("####", None, None),
    (r"\boxed{1} and \boxed{2}", "1, 2", "1, 2"),
    (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}", r"\frac{1}{2}"),
    (r"\boxed{\boxed{5}}", "5", "5"),
    (r"\boxed {5}", "5", "5"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}", r"\{1, 2\}"),
    (r"{ \boxed{3} then \boxed{4", "3", "3"),
    ("} } }" + r"\boxed{3}", "3", "3"),
    ("#### 12\nno, wait\n#### 13 \nthere", "13", "13"),
    ("#### 12\n" + r"or \boxed{13}", "13", "13"),
    (r"\boxed{13}" + "\n#### 12", "12", "12"),
    ("<answer> 7 </answer>", None, "7"),
    ("<answer>7</answer><answer>8", None, "7"),
    ("</answer>7<answer>", None, None),
    (r"<answer>\boxed{7}</answer>", "7", "7"),
    ("答え \\boxed{½ 🙂}", "½ 🙂", "½ 🙂"),
    ("The answer is 5.", None, None),
])
def test_where_answers_stand(text, strict, marked):
    assert (strict_answer(text), marked_answer(text)) == (strict, marked)


@pytest.mark.parametrize("text", [r"\boxed{" * 140_000, "{" * 1_000_000, "<answer>" * 125_000, "####" * 250_000,
                                  "answer is " * 100_000, "answer" + " " * 1_000_000, "1" * 1_000_000,
                                  r"\boxed" + " " * 1_000_000, "1,111" * 200_000])
def test_a_megabyte_is_read_in_linear_time(text):
    started = time.monotonic()
    strict_answer(text), marked_answer(text), find_answer(text, "12"), find_answer(text, "word")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("text", "reference", "found"), [
    (r"so \boxed{$1,234$}", "1234", "1234"),
    ("The answer is 42 apples, of 50.", "7", "42"),
    ("Answer: **blue**.", "red", "blue"),
    ("first 3 then 4.", "7", "4"),
    ("I think\nit is\nred", "blue", "red"),
    ("grid:\n1 2\n3 4", "5 6\n7 8", "1 2\n3 4"),
    ("<answer>\n1 2\n3 4\n</answer>", "5 6\n7 8", "1 2\n3 4"),
    (r"\boxed{\text{blue}}", "red", "blue"),
    ("It costs $1,234.50", "1", "1234.50"),
    ("5-3", "1", "3"),
    ("", "1", ""),
    ("", "", ""),
    ("the answer is 5 \n#### 6", "1", "6"),
])
def test_answers_are_found_as_their_reference_asks(text, reference, found):
    assert find_answer(text, reference) == found


def test_completions_of_every_kind_are_texts():
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    chats = [[{"role": "assistant", "content": "x"}, {"role": "assistant", "content": parts}], [{"content": None}], []]
    assert [completion_text(chat) for chat in chats] == ["ab", "", ""]
    assert boxed(r"no \boxed") is None


RIGHT = [("18", r"\boxed{18}"), ("1,234", r"\boxed{1234}"), ("3 + 5\n#### 18", "#### 18"), ("18", r"\boxed{18.0}"),
         ("18", r"\boxed{18 dollars}"), ("18", r"\boxed{\$18}"), ("18", r"\boxed{18\text{ eggs}}"), (18, r"\boxed{18}"),
         ("0.5", r"\boxed{\frac{1}{2}}"), ("1/2", r"\boxed{\frac12}"), (r"\frac{1}{2}", r"\boxed{.5}"),
         ("(1,2)", r"\boxed{(1,2)}"), ("(1,2)", r"\boxed{(1, 2)}"), (r"\boxed{(1,2)}", r"\boxed{\left(1,2\right)}"),
         ("A", r"\boxed{\text{(A)}}"), ("(A)", r"\boxed{A}"), ("Paris", r"\boxed{\text{Paris}}"), ("no", r"\boxed{No}"),
         ("3\\sqrt{2}", r"\boxed{\sqrt{18}}"), ("x^2+1", r"\boxed{1 + x^2}"), ("12", r"\boxed{x = 12}"),
         ("-3", "#### -3"), (r"so \boxed{7}", r"\boxed{7}"), ("single", r"\boxed{single}"), ("1,2", r"\boxed{2, 1}"),
         ("Sacré Cœur\n#### Paris", r"\boxed{Paris}"), ("½", r"\boxed{½}")]
WRONG = [("18", r"\boxed{19}"), ("18", r"\boxed{-18}"), ("12", r"\boxed{12 or 13}"), ("12", r"\boxed{12, 13}"),
         ("(1,2)", r"\boxed{(2,1)}"), ("(1,2)", r"\boxed{2}"), ("[1,2]", r"\boxed{(1,2)}"), ("A", r"\boxed{B}"),
         ("Paris", r"\boxed{pairs}"), ("listen", r"\boxed{silent}"), ("2", r"\boxed{2x}"),
         ("12", r"\boxed{12 million}"),
         ("18", r"\boxed{}"), ("18", r"\boxed{"), ("18", ""), ("18", r"\boxed{??}"), ("18", "#### 18\n#### 5"),
         ("18", r"#### 18 but \boxed{5}"), ("18", r"\boxed{" + "1" * 1_000_000 + "}"), ("18", r"\boxed{１９}"),
         ("18", "{" * 1_000_000), ("18", "$" * 100_000), ("18", r"\boxed{" * 100_000 + "19")]


@pytest.mark.parametrize("reward", [LENIENT, STRICT])
def test_right_and_wrong_answers(reward):
    rows = [*RIGHT, *WRONG]
    values = reward(["?"] * len(rows), [text for _, text in rows], answer=[answer for answer, _ in rows])
    assert [row for row, value in zip(rows, values) if value != float(row in RIGHT)] == []


@needs_sandbox
@pytest.mark.parametrize(("answer", "text", "lenient"), [
    ("18", "so 12 + 6 = 18.", 1.0),
    ("18", "The answer is $18.", 1.0),
    ("18", "<answer>18</answer>", 1.0),
    ("18", "18, no: 17", 0.0),
    ("(1,2)", "the answer is $(1,2)$", 1.0),
    ("A", "The answer is (A).", 1.0),
    ("A", "The answer is (B).", 0.0),
    ("Paris", "Let me think.\nParis", 1.0),
    ("18", "x" * 1_000_000 + " 18", 1.0),
    ("18", "18 " + "x" * 10_000, 0.0),
])
def test_only_the_lenient_one_takes_answers_out_of_place(answer, text, lenient):
    arguments = ["?"], [text]
    assert (LENIENT(*arguments, answer=[answer]), STRICT(*arguments, answer=[answer]), FORMAT(*arguments)) == (
        [lenient], [0.0], [0.0])


def test_rows_without_a_reference_are_left_out():
    chats = [[{"role": "assistant", "content": r"\boxed{3}"}]] * 3
    assert LENIENT(["?"] * 3, chats, solution=["work \\boxed{3}", None, ""]) == [1.0, None, None]
    assert FORMAT(["?"] * 3, chats) == [1.0] * 3
    with pytest.raises(InputError, match="no column 'answer' or 'solution'.*only other"):
        LENIENT(["?"], ["3"], other=["3"])


def test_what_hangs_is_wrong_and_costs_nobody_else():
    texts = [r"\boxed{3}", *HANGS, r"\boxed{4}", r"\boxed{3}"]
    assert make_math(timeout=0.6)(["?"] * 5, texts, answer=["3"] * 5) == [1.0, 0.0, 0.0, 0.0, 1.0]


def test_a_reference_that_cannot_be_read_is_no_fault_of_the_answer():
    with pytest.raises(RowErrors, match="1 of 2 rows failed, row 0 first: no verdict within 0.5 s"):
        make_math(timeout=0.5)(["?"] * 2, [r"\boxed{9}", r"\boxed{3}"], answer=[HANGS[0], "3"])


def test_what_is_written_alike_needs_no_mathematics():
    assert LENIENT(["?"], [HANGS[1]], answer=[HANGS[1]]) == [1.0]


def columns(task, rows):
    records = [open_source(DataSource(f"gym:{task}(size=20, seed=3)"))[row] for row in rows]
    return {name: [record[name] for record in records] for name in records[0]}


@needs_sandbox
@pytest.mark.parametrize(("task", "wrong", "mark"), [
    ("chain_sum", r"\boxed{7}", 0.0),
    ("countdown", r"\boxed{7}", 0.05),
    ("rearc", "<answer>0 0\n0 0</answer>", 0.05),  # one whose verifier compares with tuples
    ("spell_backward", "the answer is zzzz", 0.0),
])
def test_tasks_score_what_was_extracted(task, wrong, mark):
    asked = columns(task, [4, 5, 6, 7])
    texts = [f"<answer>{asked['answer'][0]}</answer>", f"Well.\n{asked['answer'][1]}", wrong, ""]
    values = make_gym(task)(asked["prompt"], texts, **asked)
    assert values[:3] == [1.0, 1.0, mark]
    assert values[3] < 0.1
    exact = make_gym_exact(task)(asked["prompt"], [*texts[:3], f"x{asked['answer'][3]}x"], **asked)
    assert exact[:3] == [1.0, 1.0, 0.0]


@needs_sandbox
@pytest.mark.parametrize("answer", ["nan", "-nan", "nan+nanj", "NaNj", "1 + nani", "inf"])
def test_no_number_is_no_answer_of_numbers(answer):
    asked = columns("complex_arithmetic", [0, 1])
    texts = [f"<answer>{answer}</answer>", f"<answer>{asked['answer'][1]}</answer>"]
    assert make_gym("complex_arithmetic")(asked["prompt"], texts, **asked) == [0.0, 1.0]


@needs_sandbox
def test_exact_gives_no_part_marks():
    asked = columns("spell_backward", [1, 2])
    texts = [f"<answer>{asked['answer'][0]} or so</answer>", f"<answer>{asked['answer'][1]} </answer>"]
    part, whole = make_gym("spell_backward")(asked["prompt"], texts, **asked)
    assert 0.0 < part < 1.0 == whole
    assert make_gym_exact("spell_backward")(asked["prompt"], texts, **asked) == [0.0, 1.0]


@needs_sandbox
def test_rows_of_other_tasks_and_without_an_answer_are_left_out():
    asked = columns("chain_sum", [1, 2]) | {"task": ["chain_sum", "countdown"]}
    texts = [f"<answer>{answer}</answer>" for answer in asked["answer"]]
    assert make_gym("chain_sum")(asked["prompt"], texts, **asked) == [1.0, None]
    assert make_gym_exact("chain_sum")(asked["prompt"], texts, **asked) == [1.0, None]
    asked |= {"answer": [None, None]}
    assert make_gym_exact("chain_sum")(asked["prompt"], texts, **asked) == [None, None]


@needs_sandbox
def test_metadata_may_have_been_written_as_json():
    asked = columns("countdown", [1])
    text = [f"<answer>{asked['answer'][0]}</answer>"]
    written = asked | {"metadata": [json.dumps(asked["metadata"][0])]}
    assert make_gym("countdown")(asked["prompt"], text, **written) == [1.0]
    with pytest.raises(InputError, match="no column 'metadata' to score countdown"):
        make_gym("countdown")(["?"], ["1"], answer=["1"])


@needs_sandbox
def test_an_answer_that_makes_its_verifier_raise_is_wrong():
    asked = columns("prime_factorization", [1, 2])
    texts = [f"<answer>{asked['answer'][0]}</answer>", "many"]
    assert make_gym("prime_factorization")(asked["prompt"], texts, **asked) == [1.0, 0.0]
    broken = asked | {"answer": ["many", "many"]}
    with pytest.raises(RowErrors, match="2 of 2 rows failed.*ValueError"):
        make_gym("prime_factorization")(asked["prompt"], texts, **broken)


PROGRAMS = ["__import__('os').system('true') or 1", "[open('/tmp/made', 'w').close(), 1]", "(lambda: 24)()",
            "[c for c in ().__class__.__base__.__subclasses__()][0]", "exec('import sys; sys.exit()')",
            "setattr(__import__('reasoning_gym'), 'x', 1) or 24", "__import__('os').write(4, b'{}') * 24",
            "Symbol('x').__class__", "S('__import__(\"os\")')", "lambdify(x, 'print(1)')(1)", "globals()",
            "breakpoint()", "f'{print(1)}'", "(x := 24)", "sqrt.__globals__", "Function('f', nargs=1)(2)",
            "[*range(9)]", "print(1)", "sympify('exec(1)')", "compile('1', '', 'exec')"]
EVALUATE = ("countdown", "puzzle24", "simple_integration", "intermediate_integration", "polynomial_multiplication",
            "string_insertion", "spiral_matrix", "binary_matrix", "n_queens")


@pytest.mark.parametrize("program", PROGRAMS)
def test_answers_are_mathematics_and_no_program(program):
    from sympy import parse_expr

    names = {}
    exec("from sympy import *", names)
    with pytest.raises((ValueError, SyntaxError)):
        checked_eval(program, names)
    sympy_parser = sys.modules["sympy.parsing.sympy_parser"]
    sympy_parser.eval = checked_eval
    try:
        with pytest.raises((ValueError, SyntaxError, TypeError, AttributeError)):
            raise ValueError(f"a symbol: {parse_expr(program)}")
    finally:
        del sympy_parser.eval


@pytest.mark.parametrize(("text", "value"), [
    ("[1, 2]", [1, 2]), ("['a', 'b']", ["a", "b"]), (" 3*(4+5) - 2/4", 26.5), ("(0x1f << 2) ^ 3", 127),
    ("-1 < 2", True),
    ("[[0, 1], [1, 0]]", [[0, 1], [1, 0]]), ("abs(-3)", 3), ("sqrt(Integer(16))", 4), ("Max(1, Integer(2))", 2)])
def test_literals_and_mathematics_are_evaluated(text, value):
    names = {}
    exec("from sympy import *", names)
    assert checked_eval(text, names) == value


@needs_sandbox
@pytest.mark.parametrize("task", [*EVALUATE, pytest.param(None, marks=pytest.mark.slow)])
def test_hostile_answers_win_nothing_and_leave_no_trace(task):
    from reasoning_gym.factory import DATASETS

    for each in [task] if task else sorted(set(DATASETS) - {"composite"}):
        asked = columns(each, [0])
        own = asked["answer"][0]
        texts = [f"<answer>{text}</answer>" for text in [*PROGRAMS, "zzz", own]]
        values = make_gym(each)(["?"] * len(texts), texts,
                                **{name: column * len(texts) for name, column in asked.items()})
        assert max(values[:-2]) <= max(values[-2], 0.4), each  # some tasks give marks to anything
        assert own is None or values[-1] == 1.0, each


def test_without_a_sandbox_scorers_refuse_and_comparisons_go_on(no_bwrap):
    with pytest.raises(InputError, match="bubblewrap"):
        make_gym("countdown")
    asked = columns("chain_sum", [1])
    assert make_gym_exact("chain_sum")(["?"], [asked["answer"][0]], **asked) == [1.0]
    assert make_gym("chain_sum", unsafe=True)(["?"], [asked["answer"][0]], **asked) == [1.0]
    [reward] = load_rewards("format(pattern='a+')")
    assert reward.function(["?"] * 2, ["aa", "b"]) == [1.0, 0.0]


def test_without_a_sandbox_only_plain_mathematics_is_read(no_bwrap):
    with pytest.warns(UserWarning, match="mathematics is read without one"):
        reward = make_math()
    texts = [r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{__import__('os')}", r"\boxed{exec(chr(49))}",
             r"\boxed{x.real}", r"\boxed{" + "0" * 400 + ".5}", r"\boxed{\cos(\pi/3)}"]
    assert reward(["?"] * 7, texts, answer=["1/2"] * 7) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(("task", "config", "message"), [
    ("chain_sm", {}, "no such task; give one like chain_sum"),
    ("chain_sum", {"terms": 3}, "no parameter 'terms'; it has min_terms"),
])
def test_unknown_tasks_and_parameters(task, config, message):
    with pytest.raises(InputError, match=message):
        make_gym(task, **config)


@needs_sandbox
def test_every_task_takes_its_own_answer_after_json():
    from reasoning_gym.factory import DATASETS

    failed = []
    for task in sorted(set(DATASETS) - {"composite"}):
        asked = columns(task, [0])
        if asked["answer"][0] is not None:
            values = make_gym(task)(asked["prompt"], [f"<answer>{asked['answer'][0]}</answer>"], **asked)
            failed += [] if values == [1.0] else [(task, values, asked["answer"])]
    assert failed == []
