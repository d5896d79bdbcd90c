"""Conversations to tokens and loss masks, by the tokenizer's own chat template.

What is trained is what the model will see: each assistant turn follows the prompt that the template writes when it is
asked for that turn. Mostly the prompts of later turns begin with earlier ones and their answers, and the conversation
is one row. Where a template renders what came before anew (it drops earlier thoughts, it moves the system message),
they do not, and such turns are rows of their own.
"""

import bisect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from data.messages import Message, read_template_kwargs, read_tools
from data.templates import ChatTemplate
from data.tokenizer import Tokenizer
from data.turns import Rendered, count_left_out, read_conversation, render_turns, write_answer
from errors import InputError, shown

EXPLAINED = {
    "rows_added": "the chat template writes earlier turns anew once a conversation goes on, so turns became rows of "
                  "their own, each after the prompt that the model will see",
    "turns_dropped": "turns are context alone, since the chat template writes them anew in the prompt of a later one, "
                     "or has no prompt or no end token for them",
    "content_dropped": "the chat template leaves out what is said: by a role that it has not, or beside a tool call",
    "reasoning_dropped": "the chat template leaves out what the assistant thought, so it is not trained on",
    "tools_dropped": "the chat template leaves out tools or tool calls"}
"""what chat templates do to rows, by names of data.reading.COUNTS"""


class Encoded(NamedTuple):
    """A row: tokens [T]; loss mask [T], 1 on targets (or the turn's weight), 0 on all else; and what happened to it on
    the way, by names of data.reading.COUNTS."""

    tokens: list[int]
    loss_mask: list[float]
    events: Mapping[str, int] = MappingProxyType({})


def open_template(tokenizer: Tokenizer, record: Mapping[str, Any] = MappingProxyType({})) -> ChatTemplate:
    """The tokenizer's template with a record's `tools` and `chat_template_kwargs`."""
    return ChatTemplate(tokenizer, read_tools(record.get("tools")),
                        read_template_kwargs(record.get("chat_template_kwargs")))


def render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False,
           **columns: Any) -> str:
    """The conversation as the chat template writes it; on request with the next assistant turn's header. `columns` are
    open_template's."""
    template = open_template(tokenizer, columns)
    return template.render(read_conversation(template, messages), add_generation_prompt)


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message], **columns: Any) -> Encoded:
    """The conversation and the header of the next assistant turn, without a target; nothing is added to them."""
    template = open_template(tokenizer, columns)
    messages = read_conversation(template, messages)
    text = template.render(messages, add_generation_prompt=True)
    tokens = tokenizer.encode(text)
    return Encoded(tokens, [0.0] * len(tokens), count_left_out(template, messages, text))


def render_answered(tokenizer: Tokenizer, messages: Sequence[Message], **columns: Any) -> str:
    """The conversation as encode_chat has it in the row of its last message, the assistant's, which may be empty."""
    template = open_template(tokenizer, columns)
    messages = read_conversation(template, messages)
    prompt = template.render(messages[:-1], add_generation_prompt=True)
    return prompt + write_answer(template, messages, len(messages) - 1, prompt)


def encode_turns(tokenizer: Tokenizer, messages: Sequence[Message], first_target: int = 0,
                 **columns: Any) -> list[Encoded]:
    """The rows in which every assistant turn is a target once, after the prompt that the model sees at that turn.

    Targets are what the assistant says and the token that ends its turn; other roles, headers, and the newline after
    the end token are not. A token that straddles the beginning of a turn is context: when the model is sampled, the
    prompt ends inside it. A header that the template does not write for `add_generation_prompt` is the assistant's to
    say, since in sampling, too, nobody else writes it. Assistant turns before message `first_target`, and those whose
    `weight` is 0 or whose `train` is false, are context as well.
    """
    rows = render_turns(open_template(tokenizer, columns), messages, first_target)
    rows[0].events["rows_added"] += len(rows) - 1
    return [_encode(tokenizer, row) for row in rows]


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], first_target: int = 0, **columns: Any) -> Encoded:
    """The row of the last turn, with whatever turns before it encode_turns puts into the same row."""
    rows = render_turns(open_template(tokenizer, columns), messages, first_target)
    rows[-1].events["turns_dropped"] += sum(len(row.targets) for row in rows[:-1])
    return _encode(tokenizer, rows[-1])


def explain(counts: Mapping[str, int]) -> list[str]:
    """A line for each thing that a chat template did to rows."""
    return [f"{name} {counts[name]}: {why}" for name, why in EXPLAINED.items() if counts.get(name)]


def _encode(tokenizer: Tokenizer, row: Rendered) -> Encoded:
    """The text is encoded once as a whole, so the tokens are those that a model sees when it is sent this text."""
    tokens, offsets = tokenizer.encode_with_offsets(row.text)
    mask = [0.0] * len(tokens)
    for target in row.targets:
        first, end = (bisect.bisect_left(offsets, at, key=lambda offset: offset[0])
                      for at in (target.start, target.end))
        if first == end or tokens[end - 1] not in tokenizer.eos_ids:
            raise InputError(f"message {target.message}: the end token that the chat template writes is not one token "
                             f"of ids {shown(tokenizer.eos_ids)}; make it a special token of the tokenizer")
        mask[first:end] = [target.weight] * (end - first)
    return Encoded(tokens, mask, row.events)
