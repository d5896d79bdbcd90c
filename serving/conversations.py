"""Messages to the prompt that a model sees: the chat template's, with tools and what the server or the request adds."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.chat import encode_prompt, open_template, render
from data.messages import read_messages, text_of
from data.tool_calls import as_text
from data.turns import read_conversation
from errors import InputError
from serving.schemas import Conversation
from serving.served import Served


def encode_chat(served: Served, body: Conversation, tools: Sequence[Any]) -> list[int]:
    """The tokens of a conversation and the header of the assistant's turn, by the chat template. Raises InputError
    where the template leaves something out."""
    messages = read_messages([_plain(message) for message in body.messages or ()])
    columns: dict[str, Any] = {"chat_template_kwargs": {**served.template_kwargs, **(body.chat_template_kwargs or {})}}
    if tools and served.writes_tools:
        messages = as_text(served.tool_format, messages, tools)
    elif tools:
        columns["tools"] = tools
    if body.continue_final_message:
        return served.encode_rendered(_continued(served, messages, columns))
    if body.add_generation_prompt is False:
        return served.encode_rendered(render(served.text, messages, **columns))
    encoded = encode_prompt(served.text, messages, **columns)
    if encoded.events["content_dropped"]:
        raise InputError("the chat template leaves out what is said by a role that it has not; give another role")
    return encoded.tokens


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's developer is the system."""
    return {**message, "role": "system"} if message.get("role") == "developer" else dict(message)


def _continued(served: Served, messages: Sequence[Any], columns: Mapping[str, Any]) -> str:
    """The text of a conversation whose last message, the assistant's, is gone on with."""
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls"):
        raise InputError("continue_final_message goes on with the assistant's text; the last message is none")
    template = open_template(served.text, columns)
    given = read_conversation(template, messages)
    return template.render(given[:-1], True) + text_of(given[-1]["content"])
