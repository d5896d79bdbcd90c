"""Words: with their marks, and where a script puts no spaces between them by how much of a word a letter is."""

import json

import numpy as np
import pytest

from curation.stages import Row
from curation.words import hash_ngrams, ngram_ends, num_words, text_of_row, words

THAI = "\u0e0a\u0e32\u0e27\u0e19\u0e32\u0e44\u0e1b\u0e15\u0e25\u0e32\u0e14"


@pytest.mark.parametrize(("text", "expected"), [
    ("It's 3 + 4_x, NA\u00cfVE!", ["it", "s", "3", "4", "x", "na\u00efve"]),
    ("\u0915\u0940 \u0915\u093e", ["\u0915\u0940", "\u0915\u093e"]),  # Hindi words that differ in their vowel alone
    ("\u0643\u064e\u062a\u064e\u0628\u064e", ["\u0643\u064e\u062a\u064e\u0628\u064e"]),
    ("\u519c\u592b2\u4e2a", ["\u519c", "\u592b", "2", "\u4e2a"]), ("e\u0301te\u0301", ["\u00e9t\u00e9"]),
    ("\u0e01\u0e34\u0e19", ["\u0e01\u0e34", "\u0e19"]), ("\ud55c\uad6d \uc0ac\ub78c", ["\ud55c\uad6d", "\uc0ac\ub78c"]),
    ("\ud83d \U0001f600 ...", []), ("", [])])
def test_words_of_many_scripts(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(("text", "count"), [("one two three", 3), ("\u519c\u592b\u4e00\u5927", 2), (THAI, 2.75)])
def test_a_letter_is_so_much_of_a_word(text, count):
    assert num_words(words(text)) == count


def test_ngrams_are_of_as_many_words_in_any_script():
    assert ngram_ends(["a", "b", "c"], 2).tolist() == [2, 3]
    assert ngram_ends(list("\u519c\u592b\u4e00\u5927\u65e9"), 2).tolist() == [4, 5]
    assert ngram_ends(["a", *"\u519c\u592b\u4e00\u5927", "b"], 2).tolist() == [3, 5, 6, 6]
    assert ngram_ends(words(THAI), 2).tolist() == [8, 9, 10, 11]
    assert [ngram_ends(some, 5).tolist() for some in ([], ["a"], ["a"] * 4)] == [[], [1], [4]]
    some = list("abcdeab\u519c\u592bab")
    hashes = hash_ngrams(some, 2)
    ends = ngram_ends(some, 2)
    grams = [tuple(some[start:end]) for start, end in enumerate(ends)]
    assert len(set(grams)) == len(np.unique(hashes)) < len(grams)


def test_chats_in_every_form_have_the_same_text():
    chat = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "so"}]
    turns = [{"from": "human", "value": "add"}, {"from": "gpt", "value": "so"}]
    forms = ({"messages": chat}, {"conversations": turns}, {"messages": json.dumps(chat)}, {"messages": turns},
             {"conversations": json.dumps(turns)}, {"prompt": json.dumps(chat[:1]), "completion": "so"},
             {"prompt": chat[:1], "completion": turns[1:]}, {"prompt": "add", "completion": chat[1:]})
    assert {text_of_row(Row("a", 0, form)) for form in forms} == {"add\nso"}
    assert {Row("a", 0, form).text for form in forms} == {"add\nso"}


def test_what_is_called_and_thought_is_text_too():
    def called(**message):
        return text_of_row(Row("a", 0, {"messages": [{"role": "assistant", "content": "", **message}]}))

    call = {"name": "f", "arguments": {"x": 1}}
    assert called(tool_calls=[call]) == called(tool_calls=[{"id": "9", "function": call}]) != called()
    assert called(tool_calls=[call]) != called(tool_calls=[call | {"arguments": {"x": 2}}])
    assert called(reasoning_content="hm") == called(thinking="hm", reasoning_content="hm") != called()
    assert called(tool_calls="[odd]") == '\n"[odd]"'
