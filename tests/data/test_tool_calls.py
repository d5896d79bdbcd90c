"""Tool calls, written and read back; what is no call stays content, whatever a model writes; and which format a chat
template has."""

import json

import pytest
from chat_families import open_family

from data.chat import open_template
from data.messages import read_messages
from data.python_calls import read_python_calls, write_python_calls
from data.tool_calls import FORMATS, as_text, decoder_with, find_format, make_call, read_turn

TWO = [("get_weather", {"city": "Köln \"am\nRhein\" </tool_call> [TOOL_CALLS]", "days": [1, -2.5e-3, {"deep": []}],
                        "metric": True}), ("ns.now", {})]
TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}}


@pytest.fixture(params=FORMATS)
def tool_format(request):
    return FORMATS[request.param]


def test_calls_are_read_as_they_were_written(tool_format):
    written = tool_format.write_calls(TWO)
    for text in (written, f"\n {written}\n"):
        assert tool_format.read(text) == ("", TWO)
    turn = read_turn(tool_format, written)
    assert tool_format.write(turn.tool_calls) == written
    assert [len(call["id"]) == 9 for call in turn.tool_calls] == [tool_format.name == "mistral"] * 2
    assert len({call["id"] for call in turn.tool_calls}) == 2
    assert read_messages([turn.message()])[0]["tool_calls"] == turn.tool_calls


def test_what_is_cut_loses_nothing(tool_format):
    """Every beginning of a call is content as a whole, or calls that are whole and content that is the rest."""
    written = tool_format.write_calls(TWO)
    for end in range(len(written)):
        content, calls = tool_format.read(written[:end])
        assert calls == TWO[: len(calls)]
        assert len(calls) < 2 or tool_format.name == "hermes"
        assert content == written[:end] if not calls else "now" not in written[:end] or content or len(calls) == 2


@pytest.mark.parametrize("text", [
    "", "Hello", "{", "[", '{"name": "f"}', '{"answer": 42}', "[1, 2]", "[f]", "[f(1)]", "[f(a=b)]", "[f(a=1+1)]",
    "<tool_call>", "<tool_call>{}</tool_call>", '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', '<tool_call>{"name": "f"} and</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', "[TOOL_CALLS]", "[TOOL_CALLS] []",
    "[TOOL_CALLS] [{}]", '[TOOL_CALLS]f{"a": 1} and more', "[TOOL_CALLS]f", '{"name": "f", "parameters": 1}',
    '{"name": "f", "parameters": {}} and more', '[f(a=1e999)]', "[f(a=__import__('os'))]", "[f(a=1), g",
    "<tool_call>" * 500, "<tool_call>" + "[" * 50_000, "[f(a=" + "[" * 50_000, "[f(a=" + "9" * 50_000 + ")]",
    "[TOOL_CALLS]" + '{"a":' * 50_000, '{"name": "f", "parameters": ' + '{"a":' * 50_000])
def test_what_is_no_call_is_content(tool_format, text):
    assert tool_format.read(text) == (text, [])


@pytest.mark.parametrize(("name", "text", "expected"), [
    ("hermes", 'First.\n<tool_call>\n{"name": "f", "arguments": "{\\"a\\": 1}"}\n</tool_call> Then.',
     ("First.\nThen.", [("f", {"a": 1})])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": null}}', ("", [("f", {"a": None})])),
    ("hermes", '<tool_call>{"name": "f"}', ("", [("f", {})])),
    ("llama3", '<|python_tag|>{"name": "f", "parameters": {}}', ("", [("f", {})])),
    ("mistral", 'Now: [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "123456789"}]',
     ("Now:", [("f", {"a": 1})])),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"a": 1}[TOOL_CALLS]g{}', ("", [("f", {"a": 1}), ("g", {})])),
    ("pythonic", "[f(a='it\\'s \\x41\\u00e9 \\d', b=(1, 2,), c=false, d=None,)]",
     ("", [("f", {"a": "it's Aé \\d", "b": [1, 2], "c": False, "d": None})]))])
def test_other_spellings_are_read_too(name, text, expected):
    assert FORMATS[name].read(text) == expected


def test_python_calls_end_where_they_end():
    assert read_python_calls(f"{write_python_calls(TWO)} [g()]") == (TWO, " [g()]")


def test_where_a_call_may_begin(tool_format):
    """What is in front of it can be given out before the rest is there."""
    written = tool_format.write_calls(TWO)
    for end in range(1, len(written)):
        assert tool_format.start(written[:end]) == 0
        if tool_format.anywhere:
            assert tool_format.start(f"Text. {written[:end]}") == 6
    assert tool_format.start("Text.") == 5


@pytest.mark.parametrize(("family", "expected"), [
    ("qwen2.5", "hermes"), ("qwen3", "hermes"), ("llama3.1", "llama3"), ("mistral-v0.3", "mistral"), ("smollm2", None),
    ("gemma2", None), ("r1-distill", None), ("phi4", None)])
def test_a_templates_format_is_the_one_that_reads_what_it_writes(family, expected):
    found = find_format(open_template(open_family(family)))
    assert (found and found.name) == expected


def test_a_template_that_writes_python_is_found():
    template = ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or () %}"
                "[{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}"
                "{% endfor %})]{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}")
    assert find_format(open_template(open_family("qwen3", template))).name == "pythonic"


def test_marks_that_are_special_tokens_stay_in_the_text():
    tokenizer = open_family("mistral-v0.3")
    written = FORMATS["mistral"].write_calls([("f", {"a": 1})])
    tokens = tokenizer.encode(written + tokenizer.eos_token)
    decode = decoder_with(tokenizer, FORMATS["mistral"].marks)
    assert FORMATS["mistral"].read(decode(tokens)).calls == [("f", {"a": 1})]
    assert decode([]) == ""


def test_a_conversation_with_tools_for_a_template_that_has_none(tool_format):
    call = make_call(tool_format, *TWO[0])
    messages = read_messages([
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "12:00"}, {"role": "assistant", "content": "Noon."}])
    plain = as_text(tool_format, messages, [TOOL])
    assert [message["role"] for message in plain] == ["system", "user", "assistant", "user", "assistant"]
    assert not any("tool_calls" in message for message in plain)
    assert plain[0]["content"].startswith("Be brief.")
    assert json.dumps(TOOL["function"]) in plain[0]["content"]
    assert tool_format.read(plain[2]["content"]).calls == TWO[:1]
    assert "12:00" in plain[3]["content"]
    assert as_text(tool_format, messages[1:], [TOOL])[0]["role"] == "system"
