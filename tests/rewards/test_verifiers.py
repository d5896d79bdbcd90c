"""Mathematics and reasoning-gym: right and wrong answers in many writings, and texts made to hang or to cheat."""

import json
import time

import pytest

from data.sources import DataSource, open_source
from errors import InputError
from rewards.answers import boxed, completion_text, find_answer, marked_answer, strict_answer
from rewards.contract import RowErrors
from rewards.gym import make_gym, make_gym_exact
from rewards.mathematics import make_math, make_math_format, make_math_strict

HANGS = [r"\boxed{9^{9^{9^9}}}", r"\boxed{" + "{" * 900 + "3" + "}" * 901]
LENIENT, STRICT, FORMAT = make_math(timeout=10.0), make_math_strict(timeout=10.0), make_math_format()


@pytest.mark.parametrize(("text", "strict", "marked"), [
    ("", None, None),
    (r"\boxed{}", None, None),
    ("####", None, None),
    (r"\boxed{1} and \boxed{2}", "2", "2"),
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
    with pytest.raises(InputError, match="no column 'answer' or 'solution'.*'other'"):
        LENIENT(["?"], ["3"], other=["3"])


@pytest.mark.parametrize("hangs", HANGS)
def test_what_hangs_fails_alone_and_in_time(hangs):
    reward = make_math(timeout=1.0)
    reward(["?"], ["3"], answer=["3"])
    started = time.monotonic()
    with pytest.raises(RowErrors, match="1 of 3 rows failed, row 1 first: no verdict within 1 s") as error:
        reward(["?"] * 3, [r"\boxed{3}", hangs, r"\boxed{4}"], answer=["3"] * 3)
    assert time.monotonic() - started < 20
    assert error.value.values == [1.0, None, 0.0]
    assert isinstance(error.value.errors[1], TimeoutError)
    assert reward(["?"], ["3"], answer=["3"]) == [1.0]


def test_what_is_written_alike_needs_no_mathematics():
    assert LENIENT(["?"], [HANGS[1]], answer=[HANGS[1]]) == [1.0]


def columns(task, rows):
    records = [open_source(DataSource(f"gym:{task}(size=20, seed=3)"))[row] for row in rows]
    return {name: [record[name] for record in records] for name in records[0]}


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


def test_exact_gives_no_part_marks():
    asked = columns("spell_backward", [1, 2])
    texts = [f"<answer>{asked['answer'][0]} or so</answer>", f"<answer>{asked['answer'][1]} </answer>"]
    part, whole = make_gym("spell_backward")(asked["prompt"], texts, **asked)
    assert 0.0 < part < 1.0 == whole
    assert make_gym_exact("spell_backward")(asked["prompt"], texts, **asked) == [0.0, 1.0]


def test_rows_of_other_tasks_and_without_an_answer_are_left_out():
    asked = columns("chain_sum", [1, 2]) | {"task": ["chain_sum", "countdown"]}
    texts = [f"<answer>{answer}</answer>" for answer in asked["answer"]]
    assert make_gym("chain_sum")(asked["prompt"], texts, **asked) == [1.0, None]
    assert make_gym_exact("chain_sum")(asked["prompt"], texts, **asked) == [1.0, None]
    asked |= {"answer": [None, None]}
    assert make_gym_exact("chain_sum")(asked["prompt"], texts, **asked) == [None, None]


def test_metadata_may_have_been_written_as_json():
    asked = columns("countdown", [1])
    text = [f"<answer>{asked['answer'][0]}</answer>"]
    written = asked | {"metadata": [json.dumps(asked["metadata"][0])]}
    assert make_gym("countdown")(asked["prompt"], text, **written) == [1.0]
    with pytest.raises(InputError, match="no column 'metadata' to score countdown"):
        make_gym("countdown")(["?"], ["1"], answer=["1"])


def test_a_verifier_that_raises_is_no_zero():
    asked = columns("prime_factorization", [1, 2])
    with pytest.raises(RowErrors) as error:
        make_gym("prime_factorization")(asked["prompt"], [f"<answer>{asked['answer'][0]}</answer>", "many"], **asked)
    assert error.value.values == [1.0, None]
    assert "ValueError" in str(error.value.errors[1])


def test_answers_are_text_and_no_program(tmp_path):
    """countdown hands the answer to sympy's parse_expr, string_insertion to eval."""
    for task in ("countdown", "string_insertion"):
        made = tmp_path / task
        for program in (f"__import__('os').system('touch {made}')", f"[open('{made}', 'w')]"):
            asked = columns(task, [1])
            make_gym(task)(asked["prompt"], [f"<answer>{program}</answer>"], **asked)
            assert not made.exists()


@pytest.mark.parametrize(("task", "config", "message"), [
    ("chain_sm", {}, "no such task; give one like chain_sum"),
    ("chain_sum", {"terms": 3}, "no parameter 'terms'; it has min_terms"),
])
def test_unknown_tasks_and_parameters(task, config, message):
    with pytest.raises(InputError, match=message):
        make_gym(task, **config)


def test_every_task_takes_its_own_answer_after_json():
    from reasoning_gym.factory import DATASETS

    failed = []
    for task in sorted(set(DATASETS) - {"composite"}):
        asked = columns(task, [0])
        if asked["answer"][0] is not None:
            values = make_gym(task)(asked["prompt"], [f"<answer>{asked['answer'][0]}</answer>"], **asked)
            failed += [] if values == [1.0] else [(task, values, asked["answer"])]
    assert failed == []
