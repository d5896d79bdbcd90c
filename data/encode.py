"""One record to one row: token ids and the loss mask, index t always speaking of token t."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from batch import Row
from data.chat import Encoded, encode_chat, encode_prompt, encode_turns, explain
from data.records import Record, normalise
from data.tokenizer import Tokenizer
from data.turns import end_texts
from errors import InputError, shown

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""what a record gives the chat template besides its messages"""


def encode_record(record: Record, tokenizer: Tokenizer | None, *, vocab_size: int, training: bool) -> Row:
    """Row of a record with `tokens`, `messages` (or ShareGPT's `conversations`), `prompt` and `completion`, or `text`.

    Pretokenised rows pass through untouched. `training` ends texts and completions given as strings with the end token
    and asks for a target; scoring takes a row as it is. The end of a chat turn is the template's affair; where turns
    must be rows of their own (encode_rows), this is the last one's.
    Raises InputError for a record of no known shape, or without any target.
    """
    return encode_rows(record, tokenizer, vocab_size=vocab_size, training=training, chat=_last_turn)[0]


def encode_rows(record: Record, tokenizer: Tokenizer | None, *, vocab_size: int, training: bool,
                chat: Callable[..., list[Encoded]] = encode_turns) -> list[Row]:
    """encode_record, but every assistant turn of a conversation is a target: mostly in one row, else in several."""
    if "tokens" in record:
        rows = [pretokenised(record, vocab_size)]
    elif tokenizer is None:
        raise InputError("the model has no tokenizer, so rows must have tokens; put tokenizer.json into its folder")
    else:
        rows = _encode(normalise(record), tokenizer, training, chat)
        for row in rows:
            check_ids(row.tokens, tokenizer, vocab_size)
    return [finish_row(row, training) for row in rows]


def _last_turn(*arguments: Any, **columns: Any) -> list[Encoded]:
    return [encode_chat(*arguments, **columns)]


def _encode(record: Record, tokenizer: Tokenizer, training: bool, chat: Callable[..., list[Encoded]]) -> list[Encoded]:
    if "messages" in record:
        return chat(tokenizer, record["messages"], **template_columns(record))
    if "prompt" in record and "completion" in record:
        return _prompt_completion(record, tokenizer, training, chat)
    if "text" in record:
        return [encode_text("", record["text"], tokenizer, training)]
    raise InputError(f"no known columns among {', '.join(sorted(record))}; a row has messages, prompt and "
                     f"completion, text, or tokens")


def template_columns(record: Record) -> dict[str, Any]:
    """What a record gives the chat template besides its messages."""
    return {name: record[name] for name in TEMPLATE_COLUMNS if name in record}


def check_ids(tokens: Sequence[int], tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises InputError for a token that the model has no embedding for."""
    highest = int(max(tokens, default=0))
    if highest >= vocab_size:
        text = tokenizer.decode([highest], skip_special_tokens=False)
        raise InputError(f"token {highest} ({text!r}) is beyond the model's embedding, which has ids from 0 to "
                         f"{vocab_size - 1}; take a tokenizer that fits the model, or drop what has the token")


def check_ends(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises InputError where the model can draw none of the tokens that end a completion."""
    if min(tokenizer.eos_ids) >= vocab_size:
        raise InputError(f"the end tokens (ids {shown(tokenizer.eos_ids)}) are beyond the model's embedding, which has "
                         f"ids from 0 to {vocab_size - 1}, so no completion could end; take a tokenizer that fits")


def finish_row(encoded: Encoded, training: bool) -> Row:
    """The row as arrays, its first token no target. Raises InputError for an empty one, or one without a target."""
    row = Row(np.asarray(encoded.tokens, np.int32), np.asarray(encoded.loss_mask, np.float32), events=encoded.events)
    row.loss_mask[:1] = 0.0
    if not len(row.tokens):
        raise InputError("the row has no tokens")
    if training and not row.loss_mask.any():
        raise InputError("no token of the row is a target: its loss mask is 0 everywhere but at the first token, "
                         "which nothing predicts")
    return row


def pretokenised(record: Record, vocab_size: int) -> Encoded:
    """`tokens` and `loss_mask` (1 everywhere unless given) as they are, once they are known to be sound."""
    tokens, mask = record["tokens"], record.get("loss_mask")
    wrong = [token for token in tokens if not (type(token) is int and 0 <= token < vocab_size)] \
        if isinstance(tokens, list) else [tokens]
    if wrong:
        raise InputError(f"tokens must be a list of ids from 0 to {vocab_size - 1}, those of the model's embedding, "
                         f"and hold {str(wrong[0])[:40]}")
    if mask is None:
        mask = [1.0] * len(tokens)
    numbers = isinstance(mask, list) and all(type(value) in (int, float, bool) and 0 <= value < 1e6 for value in mask)
    if not numbers or len(mask) != len(tokens):
        raise InputError(f"loss_mask must hold one number from 0 on for each of the {len(tokens)} tokens")
    return Encoded(tokens, mask)


def _prompt_completion(record: Record, tokenizer: Tokenizer, training: bool,
                       chat: Callable[..., list[Encoded]]) -> list[Encoded]:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return [encode_text(prompt, completion, tokenizer, training)]
    if isinstance(prompt, list) and isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if isinstance(prompt, list) and isinstance(completion, list):
        return chat(tokenizer, prompt + completion, first_target=len(prompt), **template_columns(record))
    raise InputError("prompt and completion must both be strings or both be lists of messages; behind messages, a "
                     "string is the assistant's answer")


def encode_text(prompt: str, text: str, tokenizer: Tokenizer, training: bool) -> Encoded:
    """Tokens and loss mask of prompt + text, with the BOS that the tokenizer adds, and an end token for training;
    neither where the text brings it.

    The whole is encoded at once; a token that straddles the border belongs to the prompt.
    """
    if not isinstance(text, str):
        raise InputError(f"text must be a string, not {type(text).__name__}")
    tokens, mask = _encode_whole(prompt, text, tokenizer)
    bos = missing_start(prompt + text, tokenizer)
    tokens, mask = bos + tokens, [0.0] * len(bos) + mask
    ended = not training or text.rstrip().endswith(end_texts(tokenizer))
    return Encoded(tokens, mask) if ended else Encoded([*tokens, tokenizer.eos_id], [*mask, 1.0])


def _encode_whole(prompt: str, text: str, tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    if not prompt:  # without a border nobody needs offsets, which take their time
        tokens = tokenizer.encode(text)
        return tokens, [1.0] * len(tokens)
    tokens, offsets = tokenizer.encode_with_offsets(prompt + text)
    return tokens, [float(start >= len(prompt)) for start, _ in offsets]


def start_tokens(tokenizer: Tokenizer) -> list[int]:
    """[BOS] where the tokenizer begins a text with one by itself, else []."""
    first = tokenizer.encode("", add_special_tokens=True)[:1]
    return first if first == [tokenizer.bos_id] else []


def missing_start(text: str, tokenizer: Tokenizer) -> list[int]:
    """start_tokens, but [] for a text that brings its BOS."""
    brings = tokenizer.bos_token and text.lstrip().startswith(tokenizer.bos_token)
    return [] if brings else start_tokens(tokenizer)


def encode_prompts(source: Any, tokenizer: Tokenizer | None, *, vocab_size: int, max_length: int,
                   drop_long: bool = False) -> list[list[int] | None]:
    """Token ids of prompts to be answered: of `tokens`, `messages`, or `prompt` (a string or messages).

    A string is a user's message where the tokenizer has a chat template. It is continued as it is otherwise, and where
    it begins with a special token, as texts do that a template has been applied to already.
    Messages that end with the assistant's are cut before it, and tokens that end with targets of the row's loss_mask
    before these. A prompt that is longer than max_length is None if `drop_long`. Raises InputError, naming file and
    line, for it otherwise, and for a bad row.
    """
    prompts, events = [], Counter()
    for index in range(len(source)):
        try:
            tokens, _, left_out = _encode_prompt(source[index], tokenizer, vocab_size)
            events.update(left_out)
            too_long = len(tokens) > max_length
            if max_length < 1:
                raise InputError("--max-new-tokens leaves no room for a prompt in the model's context; lower it")
            if not tokens or (too_long and not drop_long):
                raise InputError(f"a prompt of {len(tokens)} tokens, where 1 to {max_length} fit the model's "
                                 f"context beside the new ones; change the prompt or lower --max-new-tokens"
                                 f"{', or set --too-long drop' if too_long else ''}")
            prompts.append(None if too_long else tokens)
        except InputError as error:
            where = source.place(index) if hasattr(source, "place") else "--prompt"
            raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    for line in explain(events):
        print(f"note: prompts: {line}", file=sys.stderr)
    return prompts


def _encode_prompt(record: Record, tokenizer: Tokenizer | None, vocab_size: int) -> Encoded:
    if "tokens" in record:
        return _without_answer(record, pretokenised(record, vocab_size))
    if tokenizer is None:
        raise InputError("the model has no tokenizer, so rows must have tokens; put tokenizer.json into its folder")
    encoded = _encode_normalised(normalise(record), tokenizer)
    check_ids(encoded.tokens, tokenizer, vocab_size)
    return encoded


def _without_answer(record: Record, encoded: Encoded) -> Encoded:
    """Tokens that end with targets, of a row's own mask, without these."""
    length = len(encoded.tokens)
    while "loss_mask" in record and length and encoded.loss_mask[length - 1]:
        length -= 1
    return encoded._replace(tokens=encoded.tokens[:length], loss_mask=encoded.loss_mask[:length])


def _encode_normalised(record: Record, tokenizer: Tokenizer) -> Encoded:
    """The prompt of a normalised record."""
    prompt = read_prompt(record)
    if isinstance(prompt, str):
        if not tokenizer.chat_template or is_rendered(prompt, tokenizer):
            tokens = missing_start(prompt, tokenizer) + tokenizer.encode(prompt)
            return Encoded(tokens, [0.0] * len(tokens))
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list):
        raise InputError(f"no known columns among {', '.join(sorted(record))}; a row has prompt, messages or tokens")
    return encode_prompt(tokenizer, prompt, **template_columns(record))


def is_rendered(prompt: str, tokenizer: Tokenizer) -> bool:
    """Whether a text begins with a special token, as those do that a chat template has been applied to."""
    first = tokenizer.encode(prompt)[:1]
    return bool(first) and not tokenizer.decode(first) and bool(tokenizer.decode(first, skip_special_tokens=False))


def read_prompt(record: Record) -> Any:
    """The `messages` of a normalised row, without an assistant's last one, or its `prompt`; None without either."""
    prompt = record.get("messages", record.get("prompt"))
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict) and prompt[-1].get("role") == "assistant":
        return prompt[:-1]
    return prompt
