"""Chat messages as rows have them: checked, and made plain JSON values in one spelling, before a template sees them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.records import without_null
from errors import InputError, as_json

Message = dict[str, Any]  # at least {"role": str, "content": str}

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""keys under which a message may hold what the assistant thought before it spoke; templates read the first or second"""


def read_messages(messages: Sequence[Message]) -> list[Message]:
    """The messages, checked, as plain JSON values: a template gets no objects whose methods it could call.

    Null is absent, at any depth; so is an empty list of tool calls. Arguments of tool calls that are JSON text are
    parsed. A turn of the assistant that only calls tools or thinks has "" for content, however it was written (and so
    has a tool that answers nothing), and a thought goes by all names that templates read, as transformers has it.
    """
    if not isinstance(messages, list | tuple):
        raise InputError(f"messages are a {type(messages).__name__}, not a list of {{'role', 'content'}}")
    if not messages:
        raise InputError("messages are an empty list; give at least one message or drop the row")
    for i, message in enumerate(messages):
        _check_message(i, message)
    try:
        plain = json.loads(json.dumps(messages))
    except (TypeError, ValueError) as error:
        raise InputError(f"messages hold what is not JSON ({error}); remove it") from error
    return [_one_spelling(i, without_null(message)) for i, message in enumerate(plain)]


def _check_message(i: int, message: Any) -> None:
    if not isinstance(message, dict):
        raise InputError(f"message {i} is a {type(message).__name__}, not a dict of 'role' and 'content'")
    if not isinstance(message.get("role"), str):
        raise InputError(f"message {i} has no 'role'; every message needs 'role' and 'content'"
                         if "role" not in message else
                         f"message {i}: 'role' is a {type(message['role']).__name__}, not a string")
    if message.get("content") is not None or not _may_be_silent(message):
        _check_content(i, message)


def _may_be_silent(message: Message) -> bool:
    """Whether a turn needs no content: the assistant's that calls tools or thinks, and a tool's."""
    other = any(message.get(key) for key in ("tool_calls", *THOUGHTS))
    return message["role"] == "tool" or (message["role"] == "assistant" and bool(other))


def _check_content(i: int, message: Message) -> None:
    if "content" not in message:
        raise InputError(f"message {i} has no 'content'; every message needs 'role' and 'content'")
    content = message["content"]
    if isinstance(content, list):
        other = next((part for part in content if not _is_text(part)), None)
        if other is not None:
            raise InputError(f"message {i}: 'content' is a list with a part that is no text "
                             f"({json.dumps(other, default=str)[:60]}); leave text alone in it, or drop the row")
    elif not isinstance(content, str):
        raise InputError(f"message {i}: 'content' is a {type(content).__name__}, not a string")


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _one_spelling(i: int, message: Message) -> Message:
    message = {"role": message["role"], "content": message.get("content", ""), **message}
    thought = next((message[key] for key in THOUGHTS if key in message), None)
    if thought is not None:
        message = {"thinking": thought, **message, "reasoning_content": thought}
    calls = message.pop("tool_calls", None)
    if isinstance(calls, str):
        calls = _parsed(f"message {i}: tool_calls", calls)
    if calls and not isinstance(calls, list):
        raise InputError(f"message {i}: 'tool_calls' is a {type(calls).__name__}, not a list")
    return message | ({"tool_calls": [_parsed_call(i, call) for call in calls]} if calls else {})


def _parsed_call(i: int, call: Any) -> Any:
    """A tool call as {"type", "function": {"name", "arguments"}}, also where it was {"name", "arguments"}, with its
    arguments parsed; without any they are {}."""
    if not isinstance(call, dict) or not isinstance(call.get("function", call.get("name")), dict | str):
        raise InputError(f"message {i}: a tool call is {json.dumps(call)[:60]}, not {{'function': {{'name', "
                         f"'arguments'}}}}")
    if "function" not in call:
        function = {key: call[key] for key in ("name", "arguments") if key in call}
        call = {"type": "function", **{key: call[key] for key in call if key not in function}, "function": function}
    return call | {"function": _parse_arguments(i, call["function"])}


def _parse_arguments(i: int, function: Any) -> Message:
    arguments = function.get("arguments", {}) if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError(f"message {i}: a tool call's function is {json.dumps(function)[:60]}, which has no name")
    try:
        return function | {"arguments": json.loads(arguments or "{}") if isinstance(arguments, str) else arguments}
    except ValueError as error:
        raise InputError(f"message {i}: a tool call's arguments are no JSON ({error}); mend them or drop the row"
                         ) from None


def text_of(content: Any) -> str:
    """A message's content as one string; of a list, its parts put together."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content or ())


class Spoken(NamedTuple):
    """What an assistant's turn says: its thought, "" for none, and its answer."""

    thought: str
    answer: str


def read_spoken(message: Message) -> Spoken:
    """The thought is a key of THOUGHTS, or what content has before </think>."""
    before, closed, answer = text_of(message["content"]).rpartition("</think>")
    inside = before.partition("<think>")[2] if "<think>" in before else before
    given = message.get("reasoning_content")
    return Spoken((inside if closed else given if isinstance(given, str) else "").strip(), answer)


def read_tools(tools: Any) -> list[Any] | None:
    """The column `tools`, a list or JSON text of one or of each; None without any."""
    tools = _parsed("tools", tools)
    tools = [_parsed("tools", tool) for tool in tools] if isinstance(tools, list) else tools
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"tools are {json.dumps(tools, default=str)[:60]}, not a list of tools, each a JSON schema")
    return tools


def read_template_kwargs(kwargs: Any) -> Mapping[str, Any]:
    """The column `chat_template_kwargs`, a mapping or JSON text of one; null is absent."""
    kwargs = without_null(_parsed("chat_template_kwargs", kwargs)) or {}
    if not isinstance(kwargs, dict):
        raise InputError(f"chat_template_kwargs are {as_json(kwargs)}, not a mapping such as "
                         f"{{\"enable_thinking\": false}}")
    return kwargs


def parse_template_kwargs(text: str | None) -> Mapping[str, Any]:
    """--chat-template-kwargs, a mapping in YAML, of which JSON is a part."""
    import yaml

    try:
        kwargs = yaml.safe_load(text or "{}")
    except yaml.YAMLError:
        kwargs = None
    if not isinstance(kwargs, dict):
        raise InputError(f"--chat-template-kwargs {text}: not a mapping; the form is {{enable_thinking: false}}")
    return read_template_kwargs(kwargs)


def _parsed(name: str, value: Any) -> Any:
    """JSON text, or what is JSON already, as plain values."""
    try:
        if isinstance(value, str):
            return json.loads(value) if value.strip() else None
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: no JSON ({error}); mend the column or drop the row") from None
