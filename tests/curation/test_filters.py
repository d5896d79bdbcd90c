"""Filters that look at one row: each on rows that it must drop, and on like ones that it must not."""

import pytest
from chat_model import write_model

from curation.chats import malformed_chats
from curation.filters import length
from curation.languages import language
from curation.phrases import phrases
from curation.pii import passes_iban, passes_luhn, pii
from curation.repetition import looping_words, repetition
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


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


HELLO = [turn("user", "Hello"), turn("assistant", "Hello! How can I help?")]
CALL = [{"type": "function", "function": {"name": "now", "arguments": "{}"}}]


@pytest.mark.parametrize("record", [
    {"messages": HELLO},
    {"messages": [turn("system", "Be brief."), *HELLO, turn("user", "Bye"), turn("assistant", "Bye")]},
    {"messages": [turn("user", "When?"), turn("assistant", None, tool_calls=CALL), turn("tool", "noon"),
                  turn("tool", ""), turn("assistant", "At noon.")]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi!"}]},
    {"prompt": [turn("user", "Hi")], "completion": "Hi!"}, {"prompt": [turn("user", "Hi")]},
    {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}, {"text": "\n\nHuman: a chat\n\nAssistant: as text"},
    {"messages": [turn("user", "What is <s> in HTML? And [INST?"), turn("assistant", "It strikes. <|a|> is none.")]}])
def test_sound_chats_stay(record):
    assert reasons(malformed_chats(), record) == [None]


@pytest.mark.parametrize(("record", "message"), [
    ({"messages": []}, "empty list"), ({"messages": "Hi"}, "not a list"), ({"messages": ["Hi"]}, "is a str"),
    ({"messages": [{"content": "Hi"}]}, "no 'role'"), ({"messages": [turn("user", 3)]}, "is a int"),
    ({"messages": HELLO[:1]}, "the last message is by user"), ({"messages": HELLO[1:]}, "by assistant and the first"),
    ({"messages": [HELLO[0], *HELLO]}, "message 1 is by user after user"),
    ({"messages": [*HELLO, HELLO[1]]}, "message 2 is by assistant after assistant"),
    ({"messages": [*HELLO, turn("system", "Be brief.")]}, "message 2 is by system after assistant"),
    ({"messages": [turn("user", "When?"), turn("tool", "noon"), HELLO[1]]}, "message 1 is by tool after user"),
    ({"messages": [HELLO[0], turn("assistant", " \n")]}, "message 1, by assistant, is empty"),
    ({"messages": [HELLO[0], turn("assistant", "<think>Well.</think>\n")]}, "by assistant, is empty"),
    ({"messages": [turn("bot", "Hi"), HELLO[1]]}, "is by 'bot'"),
    ({"messages": [HELLO[0], turn("assistant", "Hi<|im_end|>\n<|im_start|>user\nMore")]}, "template's markup"),
    ({"messages": [HELLO[0], turn("assistant", "Hi!\n\nHuman: And then?")]}, "template's markup"),
    ({"prompt": "[INST] Hi [/INST]", "completion": "Hi"}, "prompt has a template's markup"),
    ({"prompt": "Hi", "completion": "  "}, "completion is empty"),
    ({"prompt": 3, "completion": "x"}, "prompt is a int"),
    ({"prompt": "", "completion": "x"}, "prompt is empty"),
    ({"conversations": [{"from": "martian", "value": "Hi"}]}, "martian"),
    ({"prompt": HELLO, "completion": HELLO[1:]}, "prompt: the last message is by assistant"),
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "Hello"}, "are the same")])
def test_broken_chats_are_dropped(record, message):
    assert message in reasons(malformed_chats(), record)[0]


def test_refusals_are_what_the_assistant_says():
    asked = turn("user", "Write: as an AI language model")
    records = [{"messages": [asked, turn("assistant", "As an\nAI  language model, I must say no.")]},
               {"messages": [asked, turn("assistant", "Here you are.")]},
               {"prompt": "x", "completion": "I\u2019m sorry, but I can\u2019t."},
               {"prompt": "x", "chosen": "Sure", "rejected": "I cannot provide that."},
               {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "I cannot provide that."}]}]
    assert [bool(each) for each in reasons(phrases(), *records)] == [True, False, True, False, True]
    own = phrases(drop=("synergy",), words_from_start=3)
    found = reasons(own, "We need Synergy!", "synergyse now", "one two three synergy")
    assert [bool(each) for each in found] == [True, False, False]


def test_repetition_is_a_loop_or_a_large_share():
    loop = "The answer is here. " + "I will try it again now. " * 6
    lines = "\n".join(f"Item {number % 3} of the list that everyone knows" for number in range(9)) + "\nand so it ends"
    fine = "One two three four five. " * 2 + "Then " + " ".join(f"w{number}" for number in range(60))
    found = reasons(repetition(), loop, lines, fine, "ha ha ha ha", "a" * 40, "1000000000000000000000", ENGLISH)
    assert [bool(each) for each in found] == [True, True, False, False, True, False, False]
    assert found[0].startswith("ends in a loop of 6 words")
    assert [bool(each) for each in reasons(repetition(max_repeated=0.9), lines, loop)] == [False, True]


@pytest.mark.parametrize("period", [1, 2, 7])
def test_a_loop_is_found_by_its_shortest_period(period):
    unit = [f"w{number}" for number in range(period)]
    times = max(4, -(-16 // period))
    assert looping_words(["before"] + unit * times) == period
    assert looping_words(["before"] + unit * 3) == 0
    assert looping_words(unit * times + ["after"]) == 0


def test_personal_data_is_dropped_or_masked():
    texts = ["Write to bob.smith@mail.co.uk!", "Call (415) 555-2671.", "+49 30 1234567", "Card 4111 1111 1111 1111",
             "DE89 3704 0044 0532 0130 00", "SSN 123-45-6789", "at 8.8.8.8", "key AKIAIOSFODNN7EXAMPLE",
             "a@example.com", "card 4111 1111 1111 1112", "192.168.0.1", "version 1.2.3", "2023-10-12 at 10:30",
             "3.14159265358979", "1000-2000-3000", "10 000 000 000"]
    found = reasons(pii(), *texts)
    assert [each and each.split(":")[0] for each in found] \
        == ["email", "phone", "phone", "card", "iban", "ssn", "ip", "key", *[None] * 8]
    assert "bob" not in found[0]
    row = Row("data", 0, {"messages": [turn("user", "I am a@b.org, a@b.org, 8.8.8.8.")], "id": "a@b.org"})
    assert list(pii(action="mask")([row])) == [row]
    assert row.record == {"messages": [turn("user", "I am [EMAIL], [EMAIL], [IP].")], "id": "a@b.org"}
    assert row.notes == {"stage": "pii", "masked": {"email": 2, "ip": 1}}
    assert reasons(pii(kinds=("phone",)), texts[0], texts[1])[0] is None
    with pytest.raises(InputError, match="give some of email"):
        pii(kinds=("names",))


def test_check_digits():
    assert passes_luhn("79927398713")  # ISO/IEC 7812's example
    assert not any(passes_luhn(f"7992739871{digit}") for digit in "012456789")
    assert passes_iban("GB82 WEST 1234 5698 7654 32")
    assert not passes_iban("GB28 WEST 1234 5698 7654 32")


@pytest.mark.parametrize("record", [{}, {"id": 3}, {"question": "q", "answer": "a"}])
def test_a_row_with_neither_chat_nor_text_is_malformed(record):
    assert reasons(malformed_chats(), record)[0].startswith("has neither messages nor text, only ")
    assert reasons(malformed_chats(), {"tokens": [1]}, {"chosen_tokens": [1], "rejected_tokens": [2]}) == [None] * 2


def test_filters_see_into_chats_that_are_json_text():
    import json

    chat = json.dumps([turn("user", "Hi"), turn("assistant", "As an AI language model, I say " + "ha ha " * 30)])
    for name in ("messages", "conversations"):
        assert reasons(phrases(), {name: chat})[0].startswith("says: ")
        assert "loop" in reasons(repetition(), {name: chat})[0]
        assert reasons(language(), {name: json.dumps([turn("user", ENGLISH * 9), turn("assistant", RUSSIAN)])})[0]


def test_a_row_that_was_masked_says_which_stage_made_it():
    row, other = pii(action="mask")([Row("a", 0, {"text": "Write to jane@acme.com"}), Row("a", 1, {"text": "a"})])
    assert (row.notes["stage"], other.notes) == ("pii", {})
