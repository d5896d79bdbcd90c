"""The grammars of answers: JSON of a schema, calls of functions, thoughts before them.

A grammar is a text in llguidance's form of Lark: `%json` is a JSON schema, `<[5]>` the special token 5. A schema is
held to JSON as json.dumps writes it, `{"a": 1, "b": [2]}`: a model that may write any white space may write nothing
else.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.tool_calls import ToolFormat
from serving.reading import CLOSES, OPENS

AS_DUMPED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Marks:
    """How a grammar spells the marks of calls and thoughts: those that are special tokens by their ids."""

    def __init__(self, tokenizer: Any, marks: Sequence[str]):
        self._tokens = {}
        for mark in marks:
            tokens = tokenizer.encode(mark)
            if len(tokens) == 1 and not tokenizer.decode(tokens):
                self._tokens[mark] = f"<[{tokens[0]}]>"

    def spell(self, *texts: str) -> str:
        """The texts behind each other."""
        return " ".join(self._tokens.get(text) or json.dumps(text, ensure_ascii=False) for text in texts if text)

    def up_to(self, mark: str, rule: str) -> str:
        """A rule of any text up to a mark and it."""
        if mark in self._tokens:
            return f"{rule}: /(.|\\n)*/ {self._tokens[mark]}"
        return f"{rule}[lazy]: /(.|\\n)*/ {json.dumps(mark)}"


def answer_of_schema(schema: Any) -> str:
    """The rules of an answer that is JSON of a schema."""
    return f"answer: {_json(schema)}"


def answer_of_calls(tool_format: ToolFormat, tools: Sequence[Mapping[str, Any]], marks: Marks, several: bool) -> str:
    """The rules of an answer that calls functions ({"name", "parameters"}), once or several times."""
    if tool_format.name == "hermes":
        call = f'answer: call{_more(several, "call", chr(10))}\ncall: {marks.spell("<tool_call>")} rest'
        return f"{call}\n{_rest(tool_format, tools, marks, several)}"
    if tool_format.name == "mistral":
        return f"answer: {marks.spell('[TOOL_CALLS]')} rest\n{_rest(tool_format, tools, marks, several)}"
    if tool_format.name == "llama3":
        return f'answer: body{_more(several, "body", "; ")}\n{_bodies(tools, "parameters")}'
    return f'answer: "[" call{_more(several, "call", ", ")} "]"\n{_python_calls(tools)}'


def answer_or_calls(tool_format: ToolFormat, tools: Sequence[Mapping[str, Any]], marks: Marks, several: bool) -> str:
    """The rules of an answer that may be any text, and in which what begins as a call is one."""
    if not tool_format.anywhere:
        calls = answer_of_calls(tool_format, tools, marks, several).replace("answer:", "calls:", 1)
        first = tool_format.begins[-1]
        return f"answer: calls | text\ntext: /([^\\{first}](.|\\n)*)?/\n{calls}"
    answer = "begun rest | text" if tool_format.name == "mistral" else f"(begun rest){'*' if several else '?'} text"
    return (f"answer: {answer}\ntext: /(.|\\n)*/\n{marks.up_to(tool_format.begins[0], 'begun')}\n"
            f"{_rest(tool_format, tools, marks, several)}")


def _rest(tool_format: ToolFormat, tools: Sequence[Mapping[str, Any]], marks: Marks, several: bool) -> str:
    """What follows the mark that a call begins with."""
    bodies = _bodies(tools, "arguments")
    if tool_format.name == "hermes":
        return f'rest: "\\n" body {marks.spell(chr(10), "</tool_call>")}\n{bodies}'
    return f'rest: " [" body{_more(several, "body", ", ")} "]"\n{bodies}'


def _more(several: bool, rule: str, separator: str) -> str:
    return f" ({json.dumps(separator)} {rule})*" if several else ""


def turn_grammar(rules: str, marks: Marks, splits: bool, opened: bool) -> str:
    """The grammar of a turn whose answer has these rules; where thoughts are kept apart, one may come before it."""
    if not splits:
        return f"start: answer\n{rules}"
    if opened:
        return f"start: thought /\\s*/ answer\n{marks.up_to(CLOSES, 'thought')}\n{rules}"
    return (f"start: ({marks.spell(OPENS)} thought /\\s*/)? answer\n{marks.up_to(CLOSES, 'thought')}\n{rules}")


def _json(schema: Any) -> str:
    """Raises InputError for what is no schema."""
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    return f"%json {json.dumps({**schema, 'x-guidance': AS_DUMPED})}"


def _bodies(tools: Sequence[Mapping[str, Any]], key: str) -> str:
    """One of the functions with its arguments."""
    names = [f"body_{number}" for number in range(len(tools))]
    bodies = [f"{name}: {_json(_body(tool, key))}" for name, tool in zip(names, tools)]
    return "\n".join([f"body: {' | '.join(names)}", *bodies])


def _body(tool: Mapping[str, Any], key: str) -> dict[str, Any]:
    parameters = tool.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}
    definitions = {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
    return {"type": "object", "properties": {"name": {"const": tool["name"]}, key: {"type": "object"} | parameters},
            "required": ["name", key], "additionalProperties": False} | definitions


def _python_calls(tools: Sequence[Mapping[str, Any]]) -> str:
    """Keyword arguments in the order of the schemas, their values JSON's."""
    rules = [f"call: {' | '.join(f'call_{number}' for number in range(len(tools)))}"]
    for number, tool in enumerate(tools):
        rules += _python_call(f"call_{number}", tool)
    return "\n".join(rules)


def _python_call(rule: str, tool: Mapping[str, Any]) -> list[str]:
    """f(a=..., b=...): those that are required, then any of the others, each once."""
    parameters = tool.get("parameters") or {}
    properties, required = parameters.get("properties") or {}, parameters.get("required") or []
    order = [*(name for name in properties if name in required), *(name for name in properties if name not in required)]
    rules, count = [], sum(name in required for name in order)
    for number, name in enumerate(order):
        rules.append(f"{rule}_{number}: {json.dumps(f'{name}=')} {_json(_value(properties[name], parameters))}")
    names = [f"{rule}_{number}" for number in range(len(order))]
    first = ' ", " '.join(names[:count])
    rest = "".join(f' (", " {name})?' for name in names[count:])
    inside = f"{first}{rest}" if count else f"({' | '.join(_from(names, place) for place in range(len(names)))})?"
    return [f"{rule}: {json.dumps(tool['name'] + '(')} {inside if names else ''} \")\"", *rules]


def _from(names: Sequence[str], place: int) -> str:
    return names[place] + "".join(f' (", " {name})?' for name in names[place + 1 :])


def _value(schema: Any, parameters: Mapping[str, Any]) -> Any:
    definitions = {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
    return schema | definitions if isinstance(schema, dict) else schema
