"""Chat messages to text, tokens and loss mask, by the tokenizer's own chat template.

A conversation is rendered once and its text encoded once, so the tokens are those a model sees when the
same conversation is sent to it. The loss mask is read off the text: an assistant turn begins where the prompt
for it ends and goes up to and including its end token.
"""

import bisect
import functools
import json
from collections.abc import Sequence
from typing import Any

from data.tokenizer import Tokenizer
from errors import InputError

Message = dict[str, Any]  # at least {"role": str, "content": str}


def render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The conversation as the chat template writes it; on request with the next assistant turn's header.

    Templates come with model files and are not trusted: they run in jinja2's sandbox. `strftime_now`, which
    transformers offers them, is left undefined on purpose: a prompt must not change with the date. Templates
    that test for it use their own fixed date.
    """
    return _render(tokenizer, _check(messages), add_generation_prompt)


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Tokens of the conversation and of the header of the next assistant turn; nothing is added to them."""
    return tokenizer.encode(render(tokenizer, messages, add_generation_prompt=True))


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], first_target: int = 0
) -> tuple[list[int], list[int]]:
    """Tokens [T] of the whole conversation, and loss mask [T] of 0 and 1.

    1 on what the assistant says and on the token that ends its turn; 0 on all else: other roles, headers, the
    newline after the end token. A token that straddles the beginning of a turn is context: when the model is
    sampled, the prompt ends inside it. A header that the template does not write for `add_generation_prompt`
    is the assistant's to say, since in sampling, too, nobody else writes it. Assistant turns before message
    `first_target` are context as well.
    """
    messages = _check(messages)
    turns = _assistant_turns(messages, first_target)
    text = _render(tokenizer, messages)
    tokens, offsets = tokenizer.encode_with_offsets(text)
    starts = [_turn_start(tokenizer, messages, i, text) for i in turns]
    mask = [0] * len(tokens)
    for i, start, next_start in zip(turns, starts, [*starts[1:], len(text)], strict=True):
        limit = _turn_limit(messages, i, text, start, next_start)
        first, last = _turn_tokens(tokenizer, tokens, offsets, start, limit, i)
        mask[first : last + 1] = [1] * (last + 1 - first)
    return tokens, mask


def _assistant_turns(messages: list[Message], first_target: int) -> list[int]:
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first_target]
    if not turns:
        where = f" from message {first_target} on" if first_target else ""
        raise InputError(f"no assistant turn in the conversation{where}, nothing to train on; drop the row")
    for i in turns:
        if not messages[i]["content"].strip():
            raise InputError(f"message {i}: the assistant's content is empty; fill it or drop the row")
    return turns


def _turn_start(tokenizer: Tokenizer, messages: list[Message], i: int, text: str) -> int:
    """The character of `text` where what the assistant says in message i begins.

    Only what comes before message i is rendered for this: Qwen3-like templates render a turn differently
    when it is the last one, so a conversation cut off after it need not be a prefix of the whole.
    """
    prompt = _render(tokenizer, messages[:i], add_generation_prompt=True)
    if not text.startswith(prompt):
        raise InputError(
            f"message {i}: the chat template renders the prompt of this assistant turn differently from the "
            "same part of the whole conversation; keep only the messages up to its first assistant turn, or "
            "mend the template"
        )
    return len(prompt)


def _turn_limit(messages: list[Message], i: int, text: str, start: int, next_start: int) -> int:
    """The character before which assistant turn i must have ended: where the user's next content begins.

    It holds off templates that write an end token only after the whole conversation: without it the mask
    would cover what the user says.
    """
    if i + 1 == len(messages) or messages[i + 1]["role"] != "user":
        return next_start
    content_at = text.rfind(messages[i + 1]["content"].strip(), start, next_start)
    return next_start if content_at < 0 else content_at


def _turn_tokens(tokenizer, tokens, offsets, start: int, limit: int, i: int) -> tuple[int, int]:
    """First and last token of a turn: from the first that begins at or after `start` to the end token."""
    first = bisect.bisect_left(offsets, start, key=lambda offset: offset[0])
    for last in range(first, len(tokens)):
        if offsets[last][0] >= limit:
            break
        if tokens[last] in tokenizer.eos_ids:
            return first, last
    raise InputError(
        f"message {i}: the chat template writes no end token (ids {list(tokenizer.eos_ids)}) after this "
        "assistant turn; mend the template, or name its end token in generation_config.json's eos_token_id"
    )


def _check(messages: Sequence[Message]) -> list[Message]:
    """The messages, checked, as plain JSON values: a template gets no objects whose methods it could call."""
    if not isinstance(messages, list | tuple):
        raise InputError(f"messages are a {type(messages).__name__}, not a list of {{'role', 'content'}}")
    if not messages:
        raise InputError("messages are an empty list; give at least one message or drop the row")
    for i, message in enumerate(messages):
        _check_message(i, message)
    try:
        return json.loads(json.dumps(messages))
    except (TypeError, ValueError) as error:
        raise InputError(f"messages hold what is not JSON ({error}); remove it") from error


def _check_message(i: int, message: Any) -> None:
    if not isinstance(message, dict):
        raise InputError(f"message {i} is a {type(message).__name__}, not a dict of 'role' and 'content'")
    for key in ("role", "content"):
        if key not in message:
            raise InputError(f"message {i} has no {key!r}; every message needs 'role' and 'content'")
        if not isinstance(message[key], str):
            raise InputError(f"message {i}: {key!r} is a {type(message[key]).__name__}, not a string")


def _render(tokenizer: Tokenizer, messages: list[Message], add_generation_prompt: bool = False) -> str:
    if not tokenizer.chat_template:
        raise InputError("the tokenizer has no chat template; put a chat_template.jinja into its folder")
    try:
        return _compile(tokenizer.chat_template).render(
            messages=messages,
            tools=None,  # templates ask whether these are none, not only whether they are defined
            documents=None,
            add_generation_prompt=add_generation_prompt,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
        )
    except Exception as error:  # whatever is raised in there is raised by the template
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"chat template fails on the messages ({reason}); mend one of them") from error


@functools.lru_cache(maxsize=32)
def _compile(template: str):
    return _environment().from_string(template)


@functools.lru_cache(maxsize=1)
def _environment():
    """The environment that templates are written for: transformers' own, but without the date."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    extensions = ["jinja2.ext.loopcontrols", _generation_tag()]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _generation_tag():
    """Lets `{% generation %}...{% endgeneration %}` through; our mask does not need it."""
    from jinja2 import ext, nodes

    class GenerationTag(ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return GenerationTag


def _to_json(value, ensure_ascii=False, **options) -> str:
    """jinja2's own filter escapes <, > and & for HTML, which is nothing a model should read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
