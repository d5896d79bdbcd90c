"""What a chat answer says: the same message however its text comes in parts, and nothing of it lost."""

import json
import random

import pytest

from data.tool_calls import FORMATS
from serving.reading import Reader, as_message

CALLS = [("f", {"a": {"b": "}"}, "t": "<think>"}), ("g", {})]


def read(text, seed=None, **settings):
    reader, deltas, draw, at = Reader(**settings), [], random.Random(seed), 0
    while True:
        size = len(text) if seed is None else draw.randint(0, 6)
        at += size
        deltas += reader.add(text[at - size : at], at >= len(text))
        if at >= len(text):
            return as_message(deltas), deltas, reader


def without_ids(message):
    return {name: [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in value]
            if name == "tool_calls" else value for name, value in message.items()}


TEXTS = {
    "plain": ("Hello\n there ", {}, {"content": "Hello\n there "}),
    "nothing": ("", {}, {"content": ""}),
    "thought": ("<think>\nHm. < </thin\n</think>\n\nYes.", {"splits": True},
                {"content": "Yes.", "reasoning_content": "Hm. < </thin"}),
    "opened": ("Hm.</think>Yes.", {"splits": True, "opened": True}, {"content": "Yes.", "reasoning_content": "Hm."}),
    "unfinished": ("<think>Hm. </th", {"splits": True}, {"content": "", "reasoning_content": "Hm. </th"}),
    "no thought": ("<thin", {"splits": True}, {"content": "<thin"}),
    "not asked": ("<think>a</think>b", {}, {"content": "<think>a</think>b"}),
    "empty thought": ("<think>\n\n</think>\n\nYes.", {"splits": True}, {"content": "Yes."})}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("seed", [None, *range(8)])
def test_thought_and_answer(name, seed):
    text, settings, expected = TEXTS[name]
    assert read(text, seed, **settings)[0] == {"role": "assistant"} | expected


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", [None, *range(6)])
def test_calls(name, seed):
    """Whole at once, each with its id and name, and arguments that are JSON to the last brace."""
    tool_format, settings = FORMATS[name], {"tool_format": FORMATS[name]}
    message, deltas, reader = read(tool_format.write_calls(CALLS), seed, **settings)
    assert without_ids(message) == {"role": "assistant", "content": None, "tool_calls": CALLS}
    assert reader.num_calls == 2
    assert [call["index"] for delta in deltas for call in delta["tool_calls"]] == [0, 1]
    assert all(call["id"] and call["type"] == "function" for call in message["tool_calls"])
    assert json.loads(message["tool_calls"][1]["function"]["arguments"]) == {}
    only = read(tool_format.write_calls(CALLS), seed, parallel=False, **settings)[0]
    assert without_ids(only)["tool_calls"] == CALLS[:1]
    if tool_format.anywhere:
        message = read(f"First. \n{tool_format.write_calls(CALLS)}", seed, **settings)[0]
        assert without_ids(message) == {"role": "assistant", "content": "First.", "tool_calls": CALLS}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", [None, *range(6)])
@pytest.mark.parametrize("text", ["No call.", " {", "[", "A <tool_call> b\n\n", '{"name": "f", "parameters": ',
                                  "[TOOL_CALLS] nothing", "<tool_call>\n{\"name\": \"f\", \"arguments\": {", "<tool_"])
def test_what_is_no_call_is_all_there(name, seed, text):
    message, _, reader = read(text, seed, tool_format=FORMATS[name])
    assert message == {"role": "assistant", "content": text}
    assert reader.num_calls == 0


@pytest.mark.parametrize("seed", [None, *range(6)])
def test_a_thought_before_a_call(seed):
    text = f"<think>Which? <tool_call></think>\n\n{FORMATS['hermes'].write_calls(CALLS)}\nDone."
    message = read(text, seed, tool_format=FORMATS["hermes"], splits=True)[0]
    assert without_ids(message) == {"role": "assistant", "content": "Done.", "tool_calls": CALLS,
                                    "reasoning_content": "Which? <tool_call>"}


def test_content_comes_before_a_call_is_complete():
    reader = Reader(FORMATS["hermes"])
    assert reader.add("I look.") == [{"content": "I look."}]
    assert reader.add("\n<tool_call>\n{") == []
