"""OpenAI's shape of /chat/completions: a row's messages and tools as it takes them, and what its answers say."""

import json
from collections.abc import Sequence
from typing import Any

from curation.queries import Answer, Query
from data.messages import Message, read_messages, read_tools, text_of
from errors import InputError

FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
"""of a message; whatever else a row has there is no server's"""


def write_request(query: Query) -> dict[str, Any]:
    """`messages` and, where the row has some, `tools` of a request's body. Raises InputError, naming the row, for
    messages or tools that are none."""
    prompt = query.record["prompt"]
    try:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else write_messages(prompt)
        tools = read_tools(query.record.get("tools"))
    except InputError as error:
        raise InputError(f"{query.place}: {error}") from None
    return {"messages": messages} | ({"tools": list(map(_write_tool, tools))} if tools else {})


def write_messages(messages: Sequence[Message]) -> list[Message]:
    """Every call of a tool has an id and its arguments as JSON text, and a tool's answer the id of its call: without
    one, that of the first call which has no answer yet."""
    waiting: list[str] = []
    return [_write_message(number, message, waiting) for number, message in enumerate(read_messages(messages))]


def _write_message(number: int, message: Message, waiting: list[str]) -> Message:
    written = {name: message[name] for name in FIELDS if name in message}
    if "tool_calls" in message:
        written["tool_calls"] = [_write_call(f"call_{number}_{place}", call)
                                 for place, call in enumerate(message["tool_calls"])]
        waiting += [call["id"] for call in written["tool_calls"]]
    if message["role"] == "tool":
        own = written.setdefault("tool_call_id", waiting[0] if waiting else f"call_{number}")
        waiting[:] = [each for each in waiting if each != own]
    return written


def _write_call(default_id: str, call: dict[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {"id": call.get("id") or default_id, "type": "function",
            "function": {"name": call["function"]["name"], "arguments": arguments}}


def _write_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool that is a function's schema alone, as many data sets have it, in its place."""
    return {"type": "function"} | tool if "function" in tool else {"type": "function", "function": tool}


def read_completion(found: Any, with_logprobs: bool) -> Answer:
    """The first choice of an answer's JSON, with the tokens that it cost; or why it is none."""
    usage = _read_usage(found)
    try:
        choice = found["choices"][0]
        message, finish_reason = choice["message"], str(choice.get("finish_reason") or "stop")
        text, calls = text_of(message["content"] if "tool_calls" not in message else message.get("content")), None
        if message.get("tool_calls"):
            calls = read_messages([{**message, "role": "assistant", "content": text}])[0]["tool_calls"]
        thought = str(message.get("reasoning_content") or message.get("reasoning") or "")
        top = _likeliest(choice) if with_logprobs else None
    except InputError as error:
        return Answer(failure=f"a call of a tool that cannot be read: {error}", usage=usage)
    except (LookupError, TypeError, AttributeError, ValueError):
        return _other_shape(found, "choices[0].message.content", usage)
    if with_logprobs and top is None:
        return _other_shape(found, "logprobs", usage)
    if message.get("content") is None and not calls:
        return Answer(failure=f"it says nothing (finish_reason {finish_reason})", usage=usage)
    return Answer(text, thought, finish_reason, top=top, usage=usage, tool_calls=calls)


def error_code(found: Any) -> Any:
    """What a gateway says in the body of an answer whose status is 200: {"error": {"code": 503}}; None without."""
    error = found.get("error") if isinstance(found, dict) else None
    return error.get("code") if isinstance(error, dict) else None


def _other_shape(found: Any, lacks: str, usage: tuple[int, int]) -> Answer:
    shown = json.dumps(found, ensure_ascii=False)[:200]
    return Answer(failure=f"an answer of another shape, without {lacks}: {shown}", usage=usage, of_teacher=True)


def _read_usage(found: Any) -> tuple[int, int]:
    """Tokens of prompt and completion; 0 where the answer does not say."""
    usage = found.get("usage") if isinstance(found, dict) else None
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (int(count) if isinstance(count, int | float) and 0 <= count < 1e15 else 0 for count in counts)
    return prompt, completion


def _likeliest(choice: dict[str, Any]) -> list[list[list[Any]]] | None:
    """[[text, log-probability], ...] for each token; None where there are none."""
    content = (choice.get("logprobs") or {}).get("content")
    return None if content is None else [
        [[each["token"], float(each["logprob"])] for each in token["top_logprobs"]] for token in content]
