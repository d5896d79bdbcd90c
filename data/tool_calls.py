"""Tool calls as models write them, to messages and back: Hermes' and Qwen's, Llama 3's, Python's, Mistral's.

    hermes    <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>     (Hermes, Qwen 2.5 and 3)
    llama3    {"name": "f", "parameters": {"a": 1}}                               (Llama 3.1, 3.3)
    pythonic  [f(a=1), g()]                                                       (Llama 3.2, 4)
    mistral   [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]                 (and [TOOL_CALLS]f[ARGS]{"a": 1})

    format = find_format(template)                # by what the chat template writes for a call
    read_turn(format, text)                       # Turn(content, tool_calls) of what a model has written
    format.write(tool_calls)                      # and back
    as_text(format, messages, tools)              # a conversation for a template that has no tools

What was begun as a call and is none, or is cut, is content: nothing of it is mended or lost.
"""

import dataclasses
import itertools
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data.messages import Message, read_messages, text_of
from data.python_calls import read_python_calls, write_python_calls
from data.templates import ChatTemplate
from data.tokenizer import Tokenizer
from data.turns import QUESTION, end_texts, write_answer
from errors import InputError

ToolCall = dict[str, Any]
"""{"id", "type": "function", "function": {"name", "arguments": a mapping}}"""
Call = tuple[str, dict[str, Any]]
"""(name, arguments)"""
_JSON = json.JSONDecoder()
_SPACE = re.compile(r"\s*")
_NAMED = re.compile(r"\s*([^\s\[{]+)(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*(?={)")
"""how Mistral's newer models begin a call"""


class Read(NamedTuple):
    """What a format finds in a text."""

    content: str
    """what is no call"""
    calls: list[Call]


@dataclasses.dataclass(frozen=True)
class ToolFormat:
    """One way to write calls."""

    name: str
    begins: tuple[str, ...]
    """texts that a call may begin with"""
    marks: tuple[str, ...]
    """what may be special tokens of its own, which decoding would leave out"""
    anywhere: bool
    """whether one may begin behind other text, and not only at the beginning of a turn"""
    read: Callable[[str], Read]
    write_calls: Callable[[Sequence[Call]], str]

    def write(self, tool_calls: Sequence[ToolCall]) -> str:
        """What a model writes for the calls of a message."""
        return self.write_calls([(call["function"]["name"], call["function"]["arguments"]) for call in tool_calls])

    def start(self, text: str) -> int:
        """Where the first call may begin, at the text's end in part; its length where none may."""
        if not self.anywhere:
            bare = text.lstrip()
            may = any(bare.startswith(each) or each.startswith(bare) for each in self.begins)
            return 0 if may else len(text)
        found = [place for each in self.begins if (place := text.find(each)) >= 0]
        return min(found) if found else len(text) - longest_beginning(text, self.begins)


class Turn(NamedTuple):
    """What an assistant's turn says."""

    content: str
    tool_calls: list[ToolCall]

    def message(self) -> Message:
        calls = {"tool_calls": self.tool_calls} if self.tool_calls else {}
        return {"role": "assistant", "content": self.content} | calls


def read_turn(tool_format: ToolFormat, text: str) -> Turn:
    """What a model has written, without its end token."""
    content, calls = tool_format.read(text)
    return Turn(content, [make_call(tool_format, name, arguments) for name, arguments in calls])


def make_call(tool_format: ToolFormat, name: str, arguments: Mapping[str, Any]) -> ToolCall:
    """With an id of its own; Mistral's templates want nine letters or digits."""
    identity = secrets.token_hex(5)[:9] if tool_format.name == "mistral" else f"call_{secrets.token_hex(12)}"
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def find_format(template: ChatTemplate) -> ToolFormat | None:
    """The format that a template writes calls in: the one that reads them back. None where it writes none of these."""
    name, arguments = "probe_name", {"probe_key": 1}
    call = {"id": "probe1234", "type": "function", "function": {"name": name, "arguments": arguments}}
    try:
        messages = read_messages([QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}])
        answer = write_answer(template, messages, 1, template.render(messages[:1], True))
    except InputError:
        return None
    for end in end_texts(template.tokenizer):
        answer = answer.partition(end)[0]
    return next((each for each in FORMATS.values() if each.read(answer).calls == [(name, arguments)]), None)


def decoder_with(tokenizer: Tokenizer, marks: Sequence[str]) -> Callable[[Sequence[int]], str]:
    """Tokens to text without special tokens, but for these: calls begin with one, or thoughts."""
    spelled = {mark: tokenizer.encode(mark) for mark in marks}
    kept = {tokens[0]: mark for mark, tokens in spelled.items() if len(tokens) == 1}

    def decode(tokens: Sequence[int]) -> str:
        groups = itertools.groupby(tokens, kept.__contains__)
        return "".join("".join(map(kept.__getitem__, group)) if is_mark else tokenizer.decode(group)
                       for is_mark, group in groups)

    return decode


def as_text(tool_format: ToolFormat, messages: Sequence[Message], tools: Sequence[Any]) -> list[Message]:
    """A conversation (data.messages.read_messages) for a template that knows no tools: they are described in the
    system's message, calls are what the assistant says, and answers of tools are what the user says."""
    described = describe(tool_format, tools)
    first = messages[0] if messages and messages[0]["role"] == "system" else {"role": "system", "content": ""}
    others = messages[1:] if messages and messages[0]["role"] == "system" else messages
    system = {**first, "content": "\n\n".join(filter(None, (text_of(first["content"]), described)))}
    return [system, *(_plain(tool_format, message) for message in others)]


def describe(tool_format: ToolFormat, tools: Sequence[Any]) -> str:
    """What a model is told of its tools."""
    example = tool_format.write_calls([("name", {"argument": "value"})])
    written = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    return f"You may call these functions:\n{written}\nTo call one, answer with nothing but\n{example}"


def _plain(tool_format: ToolFormat, message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text_of(message['content'])}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    content = "\n".join(filter(None, (text_of(message["content"]), tool_format.write(calls))))
    return rest | {"content": content}


# ------------------------------------------------------------------------------------------------------------- formats

def _as_call(value: Any, key: str) -> Call | None:
    """Of {"name", key: arguments}, where the arguments may be JSON text again."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get(key, {})
    if isinstance(arguments, str):
        arguments = _parsed(arguments, 0)[0]
    return (value["name"], arguments) if isinstance(arguments, dict) and _is_json(arguments) else None


def _is_json(value: Any) -> bool:
    """Whether JSON has it: no infinite numbers, nothing too deep."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins there, after white space, and where it ends; (None, at) where none does."""
    try:
        return _JSON.raw_decode(text, _SPACE.match(text, at).end())
    except (ValueError, RecursionError):
        return None, at


def _read_hermes(text: str) -> Read:
    """What stands between tags, or behind the last opening one, is a call, or content as it is."""
    opening, closing, kept, calls, at = "<tool_call>", "</tool_call>", [], [], 0
    while (start := text.find(opening, at)) >= 0:
        value, end = _parsed(text, start + len(opening))
        end, call = _SPACE.match(text, end).end(), _as_call(value, "arguments")
        if call and (text.startswith(closing, end) or end == len(text)):
            kept.append(text[at:start])
            calls.append(call)
            at = min(len(text), end + len(closing))
        else:
            kept.append(text[at : start + len(opening)])
            at = start + len(opening)
    return Read(_joined([*kept, text[at:]]) if calls else text, calls)


def _write_hermes(calls: Sequence[Call]) -> str:
    return "\n".join(f"<tool_call>\n{_json(name=name, arguments=arguments)}\n</tool_call>" for name, arguments in calls)


def _read_llama3(text: str) -> Read:
    """A turn that is nothing but calls, with ; or white space between them."""
    at, calls = len("<|python_tag|>") if text.lstrip().startswith("<|python_tag|>") else 0, []
    bare = text.strip()
    while at < len(bare):
        value, end = _parsed(bare, at)
        call = _as_call(value, "parameters") if isinstance(value, dict) and "parameters" in value else None
        if call is None:
            return Read(text, [])
        calls.append(call)
        at = end + len(bare[end:]) - len(bare[end:].lstrip("; \n\t"))
    return Read("", calls) if calls else Read(text, [])


def _write_llama3(calls: Sequence[Call]) -> str:
    return "; ".join(_json(name=name, parameters=arguments) for name, arguments in calls)


def _read_pythonic(text: str) -> Read:
    """A turn that is nothing but a list of calls."""
    found = read_python_calls(text.strip().removeprefix("<|python_tag|>"))
    calls = found[0] if found and not found[1].strip() else []
    return Read("", calls) if calls and all(_is_json(arguments) for _, arguments in calls) else Read(text, [])


def _read_mistral(text: str) -> Read:
    mark, calls = "[TOOL_CALLS]", []
    start = at = max(0, text.find(mark))
    while text.startswith(mark, at):
        found, end = _calls_of_mistral(text, at + len(mark))
        calls += found
        at = _SPACE.match(text, end).end() if found else at + 1
    return Read(text[:start].strip(), calls) if calls and at == len(text) else Read(text, [])


def _calls_of_mistral(text: str, at: int) -> tuple[list[Call], int]:
    """A list of calls, or one as name[CALL_ID]id[ARGS]arguments, and where it ends; [] where there is neither."""
    values, end = _parsed(text, at)
    if isinstance(values, list):
        calls = [_as_call(value, "arguments") for value in values]
        return ([] if None in calls else calls), end
    named = _NAMED.match(text, at)
    arguments, end = _parsed(text, named.end()) if named else (None, at)
    call = _as_call({"name": named[1], "arguments": arguments}, "arguments") if named else None
    return ([call] if call else []), end


def _write_mistral(calls: Sequence[Call]) -> str:
    return f"[TOOL_CALLS] [{', '.join(_json(name=name, arguments=arguments) for name, arguments in calls)}]"


def _joined(parts: Sequence[str]) -> str:
    return "\n".join(filter(None, map(str.strip, parts)))


def _json(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)


def longest_beginning(text: str, strings: Sequence[str]) -> int:
    """Characters at a text's end that are the beginning of one of the strings, but not all of it."""
    return max((length for string in strings for length in range(1, min(len(string), len(text) + 1))
                if text.endswith(string[:length])), default=0)


FORMATS = {each.name: each for each in (
    ToolFormat("hermes", ("<tool_call>",), ("<tool_call>", "</tool_call>"), True, _read_hermes, _write_hermes),
    ToolFormat("mistral", ("[TOOL_CALLS]",), ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), True, _read_mistral,
               _write_mistral),
    ToolFormat("llama3", ("<|python_tag|>", "{"), ("<|python_tag|>",), False, _read_llama3, _write_llama3),
    ToolFormat("pythonic", ("<|python_tag|>", "["), ("<|python_tag|>",), False, _read_pythonic, write_python_calls))}
"""by name"""
