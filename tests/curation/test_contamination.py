"""Rows that hold an evaluation's text: whole, in part, in other typography; form and chance are no contamination."""

import json
import random

import pytest

from curation.contamination import contamination
from curation.stages import Drop, Row
from errors import InputError

QUESTION = "A farmer has 17 sheep and all but nine of them run away; how many sheep are left on his farm?"


@pytest.fixture
def evaluation(tmp_path):
    def write(*records):
        path = tmp_path / "test.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)
    return write


def reasons(stage, *records):
    return [each.reason if isinstance(each, Drop) else None
            for each in stage([Row("data", index, record) for index, record in enumerate(records)])]


def test_what_is_verbatim_is_found_wherever_it_stands(evaluation):
    path = evaluation({"question": "Something else", "answer": "4"}, {"turns": [QUESTION], "id": 3})
    stage = contamination(against=(path,))
    found = reasons(
        stage, {"text": f"Solve this. {QUESTION.upper().replace(';', ' --')} Think."},
        {"messages": [{"role": "user", "content": f"**{QUESTION[:60]}**"}]},
        {"prompt": "x", "completion": "y", "hidden": {"note": [QUESTION]}},
        {"text": "A farmer has 17 sheep and two dogs"}, {"text": "How many sheep does the farmer have left?"},
        {"text": "4"}, {"prompt": "Something else", "completion": "4"})
    assert [reason is not None for reason in found] == [True, True, True, False, False, False, False]
    assert found[0].startswith(f"{path} row 1, all of a text: a farmer has 17 sheep") or (
        f"{path} row 1, 100% of a text: a farmer has 17 sheep and all but nine" in found[0])


def test_short_questions_count_as_a_whole(evaluation):
    stage = contamination(against=(evaluation({"question": "What is 3 + 4?", "answer": "New York"}),))
    found = reasons(stage, {"text": "what is 3 + 4"}, {"text": "What is 3 * 4?"}, {"text": "New York"},
                    {"text": "He asked: what is 3 + 4?"})
    assert [reason is not None for reason in found] == [True, False, False, False]


def test_few_words_of_a_long_text_are_chance_and_thirteen_are_not(evaluation):
    text = " ".join(f"w{number}" for number in range(100))
    stage = contamination(against=(evaluation({"text": text}),))
    eight, twelve, thirteen = (" ".join(f"w{number}" for number in range(50, 50 + count)) for count in (8, 12, 13))
    assert [bool(each) for each in reasons(stage, *({"text": f"so {part} so"} for part in (eight, twelve, thirteen)))] \
        == [False, False, True]
    strict = contamination(against=(evaluation({"text": text}),), min_share=0.0)
    assert [bool(each) for each in reasons(strict, {"text": f"so {eight} so"}, {"text": eight[3:]})] == [True, False]


def test_the_form_of_an_evaluation_is_none_of_its_questions(evaluation):
    form = "Read the passage below and then answer the question with one word:"
    path = evaluation(*({"question": f"{form} topic{number}"} for number in range(12)))
    found = reasons(contamination(against=(path,)), {"text": f"{form} something new"}, {"text": f"{form} topic3"})
    assert [bool(each) for each in found] == [False, True]
    assert all(reasons(contamination(against=(path,), max_items=12), {"text": f"{form} something new"}))


def test_an_evaluation_that_is_the_data_is_refused(evaluation, tmp_path):
    path = evaluation({"question": QUESTION})
    other = tmp_path / "link.jsonl"
    other.symlink_to(path)
    with pytest.raises(InputError, match="is the data itself"):
        list(contamination(against=(str(other),))([Row(path, 0, {"text": "x"})]))
    with pytest.raises(InputError, match="cannot be read"):
        contamination(against=(str(tmp_path / "none.jsonl"),))
    with pytest.raises(InputError, match="against is a list"):
        contamination(against=())


def test_an_evaluation_that_is_one_of_the_data_s_files_is_refused(evaluation, tmp_path):
    path = evaluation({"question": QUESTION})
    with pytest.raises(InputError, match="is the data itself"):
        list(contamination(against=(f"{{source: {path}, columns: {{q: question}}}}",))([
            Row(str(tmp_path / "*.jsonl"), 0, {"text": "x"})]))


def test_scripts_without_spaces_share_no_more_by_chance(evaluation):
    """Thirteen letters are three words of Thai, and as many as everybody says."""
    draw = random.Random(0)
    letters = [chr(0xe01 + number) for number in range(26)]
    text, other = ("".join(draw.choices(letters, k=200)) for _ in range(2))
    stage = contamination(against=(evaluation({"text": text}, {"text": "\u5168\u90e8\u90fd\u5bf9"}),))
    some = [other + text[20 : 20 + count] + other for count in (13, 40, 60)]
    assert [bool(each) for each in reasons(stage, *({"text": part} for part in (*some, "\u5168\u90e8\u90fd\u5bf9")))] \
        == [False, False, True, False]
