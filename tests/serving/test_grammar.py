"""Which tokens may come next: what a grammar takes, what it does not, and schemas that none can be made of."""

import json

import numpy as np
import pytest

from data.tool_calls import FORMATS
from errors import InputError
from serving.grammar import Grammars
from serving.rules import Marks, answer_of_calls, answer_of_schema, answer_or_calls, turn_grammar

TOOLS = [{"name": "weather", "parameters": {"type": "object", "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}}, "required": ["city"],
    "additionalProperties": False}}, {"name": "now"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "null"}}},
          "required": ["a"], "additionalProperties": False}


class Bytes:
    """A token a byte; 256 is the end, 257 and 258 are marks where they are special."""

    eos_id, eos_ids, bos_id, special = 256, (256,), None, {}

    def __init__(self, *special):
        self.special = {text: 257 + number for number, text in enumerate(special)}

    def token_bytes(self):
        return [*(bytes([byte]) for byte in range(256)), None, *(None for _ in self.special)]

    def encode(self, text):
        for mark, token in self.special.items():
            before, found, after = text.partition(mark)
            if found:
                return [*self.encode(before), token, *self.encode(after)]
        return [*text.encode()]

    def decode(self, tokens):
        return bytes(token for token in tokens if token < 256).decode()


def takes(grammar, text, tokenizer=None):
    """Whether every token may follow those before it, and the end the last."""
    tokenizer = tokenizer or Bytes()
    mask, tokens = Grammars(tokenizer, 260).mask(grammar), []
    for token in [*tokenizer.encode(text), tokenizer.eos_id]:
        allowed = mask(tokens)
        assert (allowed.dtype, allowed.shape) == (bool, (260,))
        if not allowed[token]:
            return False
        tokens.append(token)
    return True


@pytest.mark.parametrize(("text", "taken"), [
    ('{"a": 1}', True), ('{"a": -12, "b": [null, null]}', True), ('{"a": 1', False), ('{"b": []}', False),
    ('{"a":1}', False), ('{"a": 1.5}', False), ('{"a": 1} ', False), ("x", False), ("", False)])
def test_json_of_a_schema(text, taken):
    assert takes(turn_grammar(answer_of_schema(SCHEMA), Marks(Bytes(), ()), False, False), text) == taken
    assert takes(turn_grammar(answer_of_schema({"type": "object"}), Marks(Bytes(), ()), False, False), text) == (
        taken or text in ('{"b": []}', '{"a": 1.5}'))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("special", [False, True])
def test_calls(name, special):
    tool_format = FORMATS[name]
    tokenizer = Bytes(*tool_format.marks[:2]) if special else Bytes()
    marks = Marks(tokenizer, tool_format.marks)
    several, one = (turn_grammar(answer_of_calls(tool_format, TOOLS, marks, more), marks, False, False)
                    for more in (True, False))
    maybe = turn_grammar(answer_or_calls(tool_format, TOOLS, marks, True), marks, False, False)
    good = [[("now", {})], [("weather", {"city": "Ulm", "unit": "C"})], [("now", {}), ("weather", {"city": "\u00df"})]]
    for calls in good:
        text = tool_format.write_calls(calls)
        assert takes(several, text, tokenizer)
        assert takes(maybe, text, tokenizer)
        assert takes(one, text, tokenizer) == (len(calls) == 1)
    for calls in ([("weather", {"days": 1})], [("other", {})], [("now", {"a": 1})], [("weather", {"city": 1})]):
        text = tool_format.write_calls(calls)
        assert not takes(several, text, tokenizer)
        assert not takes(maybe, text, tokenizer)
    assert takes(maybe, "Some text, {no} [call].", tokenizer)
    assert not takes(several, "Some text.", tokenizer)


def test_python_calls_of_optional_arguments_alone():
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {
        "$ref": "#/$defs/flag"}}, "$defs": {"flag": {"type": "boolean"}}}}]
    marks = Marks(Bytes(), ())
    grammar = turn_grammar(answer_of_calls(FORMATS["pythonic"], tools, marks, False), marks, False, False)
    texts = {text: takes(grammar, text) for text in ("[f()]", "[f(a=1)]", "[f(b=true)]", "[f(a=1, b=false)]",
                                                     "[f(b=true, a=1)]", "[f(, a=1)]", "[f(b=1)]")}
    assert [*texts.values()] == [True] * 4 + [False] * 3


def test_a_thought_may_come_first():
    answer, marks = answer_of_schema(SCHEMA), Marks(Bytes(), ())
    closed, opened = turn_grammar(answer, marks, True, False), turn_grammar(answer, marks, True, True)
    assert takes(closed, '{"a": 1}')
    assert takes(closed, '<think>{"x</think>\n{"a": 1}')
    assert takes(opened, 'Hm, {"x</think>{"a": 1}')
    assert not takes(opened, '{"a": 1}')
    special = Bytes("</think>")
    assert takes(turn_grammar(answer, Marks(special, ("</think>",)), True, True), 'Hm.</think>{"a": 1}', special)


def test_what_is_read_again_is_no_matter():
    """A request that is sent back goes on with the tokens that it has."""
    grammars = Grammars(Bytes(), 260)
    mask, text = grammars.mask(turn_grammar(answer_of_schema(SCHEMA), Marks(Bytes(), ()), False, False)), b'{"a": 1'
    at_once = mask([*text])
    np.testing.assert_array_equal(mask([*text]), at_once)
    assert mask([*text, ord("}")])[256]


@pytest.mark.parametrize("schema", [
    {"type": "nothing"}, {"$ref": "http://127.0.0.1:9/a"}, {"$ref": "#/$defs/none"}, {"properties": 5}, {"enum": []},
    {"not": {"type": "string"}}, {"type": "string", "pattern": "(?=a)b"}, {"type": "string", "pattern": "("},
    {"allOf": [{"type": "string"}, {"type": "null"}]}, False, {"type": "integer", "minimum": 5, "maximum": 4},
    {"description": "x" * 2**18}, {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                                   "$ref": "#/$defs/a"}])
def test_a_schema_of_which_no_grammar_can_be_made_is_one_line(schema):
    grammar = turn_grammar(answer_of_schema(schema), Marks(Bytes(), ()), False, False)
    with pytest.raises(InputError, match="(no grammar can be made of a schema|the schemas of a request)") as error:
        Grammars(Bytes(), 260).check(grammar)
    assert "\n" not in str(error.value)
    assert "<state>" not in str(error.value)


def test_a_schema_of_too_many_symbols_is_refused(monkeypatch):
    monkeypatch.setattr("serving.grammar.MAX_SYMBOLS", 300)
    grammars, marks = Grammars(Bytes(), 260), Marks(Bytes(), ())
    few, many = (turn_grammar(answer_of_schema({"properties": dict.fromkeys(map(str, range(count)), {})}), marks, False,
                              False) for count in (3, 60))
    grammars.check(few)
    with pytest.raises(InputError, match="too big"):
        grammars.check(many)


def test_names_cannot_write_rules():
    """What a client calls its functions and arguments is text to the grammar."""
    evil = 'x" | /.*/ \n start: /.*/ #'
    tools = [{"name": evil, "parameters": {"type": "object", "properties": {evil: {"type": "integer"}}}}]
    for tool_format in FORMATS.values():
        marks = Marks(Bytes(), tool_format.marks)
        grammar = turn_grammar(answer_of_calls(tool_format, tools, marks, True), marks, False, False)
        assert not takes(grammar, "x")
        if tool_format.name != "pythonic":
            assert takes(grammar, tool_format.write_calls([(evil, {evil: 1})]))
    assert json.dumps(evil)
