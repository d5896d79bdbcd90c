"""Filters of one row: language and length."""

import pytest
from chat_model import write_model

from curation.filters import length
from curation.languages import language
from curation.stages import Drop, Row
from errors import InputError

ENGLISH = "The farmer went to the market in the morning and sold all of his apples."
GERMAN = "Der Bauer ging am Morgen auf den Markt und verkaufte alle seine \u00c4pfel."
RUSSIAN = "Крестьянин пошёл утром на рынок и продал все яблоки."
CHINESE = "\u519c\u592b\u65e9\u4e0a\u53bb\u5e02\u573a\uff0c\u5356\u6389\u4e86\u6240\u6709\u7684\u82f9\u679c\u3002"


def reasons(stage, *records):
    rows = [Row("data", index, record if isinstance(record, dict) else {"text": record})
            for index, record in enumerate(records)]
    out = list(stage(rows))
    assert [each.row if isinstance(each, Drop) else each for each in out] == rows
    return [each.reason if isinstance(each, Drop) else None for each in out]


def test_other_languages_are_dropped():
    found = reasons(language(), ENGLISH, GERMAN, RUSSIAN, CHINESE, ENGLISH.upper())
    assert [reason and reason.split()[0] for reason in found] == [None, "de", "ru", "zh", None]
    found = reasons(language(keep=("de", "zh")), ENGLISH, GERMAN, CHINESE)
    assert [bool(each) for each in found] == [True, False, False]


def test_an_answer_in_another_language_is_found_behind_a_long_prompt():
    assert reasons(language(), {"prompt": ENGLISH * 5, "completion": RUSSIAN})[0].startswith("ru")
    chat = [{"role": "user", "content": ENGLISH * 5}, {"role": "assistant", "content": GERMAN}]
    assert reasons(language(), {"messages": chat})[0].startswith("de")
    assert reasons(language(), {"prompt": "How do I say good morning to my teacher?", "completion": "Guten Morgen!"}) \
        == [None]


def test_what_tells_no_language_stays():
    code = "Here it is:\n```python\nfor zahl in liste:\n    summe += zahl\n```"
    assert reasons(language(), "", "42", "48 + 24 = 72", "ok", "def f(x):\n    return x + 1", code) == [None] * 6


def test_a_language_that_does_not_exist_is_one_line():
    with pytest.raises(InputError, match="no language 'english'"):
        language(keep=("english",))
    with pytest.raises(InputError, match="keep is empty"):
        language(keep=())


def test_length_counts_tokens_of_text_or_of_columns(tmp_path):
    path = str(write_model(tmp_path / "model"))  # a token a character
    row = {"prompt": "one two three", "completion": "four"}
    assert reasons(length(tokenizer=path, max_tokens=18), row) == [None]
    assert reasons(length(tokenizer=path, max_tokens=17), row) == ["18 tokens, more than 17"]
    assert reasons(length(tokenizer=path, min_tokens=5, columns=("completion",)), row) == ["4 tokens, fewer than 5"]
    with pytest.raises(InputError, match="no column reply"):
        reasons(length(tokenizer=path, columns=("reply",)), row)
    with pytest.raises(InputError, match="leave no row"):
        length(min_tokens=5, max_tokens=4)
