"""Chats that no template should be given: broken messages, turns out of order, empty ones, leaked markup."""

import re
from collections.abc import Sequence
from typing import Any

from curation.filters import dropping
from curation.stages import TEXT_COLUMNS, Row, Stage, by_row
from data.messages import Message, read_messages, read_spoken, text_of
from data.records import normalise
from errors import InputError

MARKUP = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|user|assistant"
                    r"|system|end)\|>|</?s>\s*\[?/?INST|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
                    r"|\n\n(?:Human|Assistant|User|AI): |^#{2,3} (?:Instruction|Response):\s*$", re.MULTILINE)
"""what chat templates write between turns; inside one, turns were put together, or an end was not seen"""
OWN_ROLES = ("system", "developer", "user", "assistant", "tool")


@by_row
def malformed_chats(*, ends_with: str = "assistant", markup: bool = True) -> Stage:
    """Drops rows whose chat or completion is broken, or that have neither chat nor text, and says how.

    Messages must have a role and content; a system message comes first, then user and assistant in turn (tools behind
    the calls that they answer), the last by `ends_with` ("user" for prompts alone); nobody says nothing; and nobody
    says a template's markup or another's "\\n\\nHuman: " (`markup: false` lets them). Of prompt and completion both
    must say something; chosen and rejected must differ.
    """
    if ends_with not in ("assistant", "user"):
        raise InputError(f"ends_with is {ends_with!r}; give assistant, or user for prompts alone")

    def problem(row: Row) -> str | None:
        try:
            record = normalise(row.record)
            return _problem(record, ends_with) or (_markup(record) if markup else None)
        except InputError as error:
            return str(error)

    return dropping(problem)


def _problem(record: dict[str, Any], ends_with: str) -> str | None:
    """Why a record is no sound chat, pair or text; None where it is. Raises InputError for broken messages."""
    if not record.keys() & {*TEXT_COLUMNS, "tokens", "chosen_tokens"}:
        return f"has neither messages nor text, only {', '.join(sorted(record)) or 'nothing'}"
    if "messages" in record:
        return _turns_problem(read_messages(record["messages"]), ends_with)
    answers = [name for name in ("completion", "chosen", "rejected") if name in record]
    prompt = record.get("prompt")
    for name in [*(["prompt"] if "prompt" in record else []), *answers, *(["text"] if "text" in record else [])]:
        if _is_empty(record[name]):
            return f"{name} is empty"
        if not isinstance(record[name], str | list):
            return f"{name} is a {type(record[name]).__name__}, neither a string nor messages"
    if isinstance(prompt, list):
        problem = _turns_problem(read_messages(prompt), "user")
        if problem:
            return f"prompt: {problem}"
    for name in answers:
        turns = [*(prompt if isinstance(prompt, list) else ()), *record[name]] if isinstance(record[name], list) else []
        problem = _turns_problem(read_messages(turns), "assistant") if turns else None
        if problem:
            return f"{name}: {problem}"
    if answers == ["chosen", "rejected"] and record["chosen"] == record["rejected"]:
        return "chosen and rejected are the same"
    return None


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value == []


def _turns_problem(messages: Sequence[Message], ends_with: str) -> str | None:
    roles = [message["role"] for message in messages]
    for number, (message, role) in enumerate(zip(messages, roles)):
        if role not in OWN_ROLES:
            return f"message {number} is by {role!r}"
        if not _says_something(message):
            return f"message {number}, by {role}, is empty"
        if not _may_follow(role, messages[number - 1] if number else None):
            return f"message {number} is by {role} {f'after {roles[number - 1]}' if number else 'and the first'}"
    allowed = ("user", "tool") if ends_with == "user" else (ends_with,)
    return None if roles[-1] in allowed else f"the last message is by {roles[-1]}"


def _says_something(message: Message) -> bool:
    """Tools may answer with nothing, and a turn that calls tools or thinks may say no more."""
    return bool(message["role"] == "tool" or message.get("tool_calls") or text_of(message["content"]).strip() and (
        message["role"] != "assistant" or read_spoken(message).answer.strip()))


def _may_follow(role: str, before: Message | None) -> bool:
    if role in ("system", "developer"):
        return before is None or before["role"] in ("system", "developer")
    if role == "tool":
        return before is not None and (before["role"] == "tool" or bool(before.get("tool_calls")))
    if role == "user":
        return before is None or before["role"] in ("system", "developer", "assistant") and not before.get("tool_calls")
    return before is not None and before["role"] in ("user", "tool")


def _markup(record: dict[str, Any]) -> str | None:
    """The markup that somebody says, with what stands around it; a text, and a pair whose prompt stands in both
    answers, may hold whole chats."""
    apart = ("messages", "prompt", "completion", *(("chosen", "rejected") if "prompt" in record else ()))
    for name in apart:
        value = record.get(name)
        for text in [value] if isinstance(value, str) else [text_of(each["content"]) for each in value or ()]:
            found = MARKUP.search(text)
            if found:
                around = text[max(0, found.start() - 20) : found.end() + 20]
                return f"{name} has a template's markup: {' '.join(around.split())}"
    return None
