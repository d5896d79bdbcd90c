"""Messages in one spelling: what rows write in several ways is one to a template, and what is no message is named."""

import json

import pytest

from data.messages import read_messages, read_spoken, read_template_kwargs, read_tools
from errors import InputError

CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"a": None, "b": 1}}}
ONE = {"role": "assistant", "content": "", "tool_calls": [CALL | {"function": {"name": "f", "arguments": {"b": 1}}}]}


def assistant(**keys):
    return {"role": "assistant", **keys}


def call(**function):
    return CALL | {"function": {"name": "f", **function}}


@pytest.mark.parametrize("message", [
    assistant(content=None, tool_calls=[CALL]),
    assistant(tool_calls=[CALL]),
    assistant(content="", tool_calls=[CALL], name=None),
    assistant(tool_calls=[call(arguments='{"b": 1}')]),
    assistant(tool_calls=json.dumps([call(arguments='{"b": 1}')])),
])
def test_a_turn_that_only_calls_tools_has_one_spelling(message):
    assert read_messages([message]) == [ONE]


@pytest.mark.parametrize("function", [{}, {"arguments": None}, {"arguments": ""}, {"arguments": "{}"}])
def test_no_arguments_are_none(function):
    [message] = read_messages([assistant(tool_calls=[call(**function)])])
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


def test_null_is_absent_but_for_json_text_and_tools():
    [message] = read_messages([{"role": "user", "content": "x", "tool_calls": None, "meta": {"a": None, "b": [None]}}])
    assert message == {"role": "user", "content": "x", "meta": {"b": [None]}}
    [message] = read_messages([assistant(tool_calls=[call(arguments='{"a": null}')])])
    assert message["tool_calls"][0]["function"]["arguments"] == {"a": None}
    schema = [{"name": "f", "default": None}]  # where null is a value
    assert read_tools(schema) == read_tools(json.dumps(schema)) == read_tools([json.dumps(schema[0])]) == schema
    assert read_template_kwargs({"a": None, "b": 1}) == {"b": 1}


def test_a_call_without_its_wrapping_gets_one():
    [message] = read_messages([assistant(tool_calls=[{"name": "f", "arguments": {}, "id": "7"}])])
    assert message["tool_calls"] == [{"type": "function", "id": "7", "function": {"name": "f", "arguments": {}}}]


def test_a_tool_may_answer_nothing():
    assert read_messages([{"role": "tool", "content": None}]) == [{"role": "tool", "content": ""}]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_goes_by_the_names_that_templates_read(key):
    [message] = read_messages([assistant(content=None, **{key: "hm"})])
    assert (message["reasoning_content"], message["thinking"], message["content"]) == ("hm", "hm", "")
    assert read_spoken(message) == ("hm", "")


@pytest.mark.parametrize(("content", "spoken"), [
    ("<think>\nhm\n</think>\n\nyes", ("hm", "\n\nyes")), ("hm\n</think>\nyes", ("hm", "\nyes")), ("yes", ("", "yes")),
    ("<think>a</think>b</think>c", ("a</think>b", "c")), ("<think>\nhm", ("", "<think>\nhm")),
])
def test_thought_and_answer_in_one_content(content, spoken):
    assert read_spoken(assistant(content=content)) == spoken


@pytest.mark.parametrize(("calls", "line"), [
    ("f()", "tool_calls: no JSON"), ({"a": 1}, "'tool_calls' is a dict, not a list"),
    (["f()"], "a tool call is \"f\\(\\)\""),
    ([{"id": "1"}], "a tool call is"),
    ([{"function": "f"}], "a tool call's function is \"f\", which has no name"),
    ([{"function": {"arguments": {}}}], "which has no name"), ([call(arguments="{a")], "arguments are no JSON"),
])
def test_what_is_no_tool_call_is_named(calls, line):
    with pytest.raises(InputError, match=f"message 1: .*{line}") as caught:
        read_messages([{"role": "user", "content": "x"}, assistant(content="", tool_calls=calls)])
    assert "\n" not in str(caught.value)
