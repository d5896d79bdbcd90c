"""One record to one row: token ids and the loss mask, index t always speaking of token t."""

from typing import Any

import numpy as np

from batch import Row
from data.chat import encode_chat, encode_prompt
from data.records import Record, normalise
from data.tokenizer import Tokenizer
from errors import InputError


def encode_record(record: Record, tokenizer: Tokenizer | None, *, vocab_size: int, training: bool) -> Row:
    """Row of a record with `tokens`, `messages` (or ShareGPT's `conversations`), `prompt` and `completion`, or `text`.

    Pretokenised rows pass through untouched. `training` ends texts and completions given as strings with the end token
    and asks for a target; scoring takes a row as it is. The end of a chat turn is the template's affair.
    Raises InputError for a record of no known shape, or without any target.
    """
    if "tokens" in record:
        row = pretokenised(record, vocab_size)
    elif tokenizer is None:
        raise InputError("the model has no tokenizer, so rows must have tokens; put tokenizer.json into its folder")
    else:
        row = _encode(normalise(record), tokenizer, training)
    return finish_row(*row, training)


def _encode(record: Record, tokenizer: Tokenizer, training: bool) -> tuple[list[int], list[float]]:
    if "messages" in record:
        return encode_chat(tokenizer, record["messages"])
    if "prompt" in record and "completion" in record:
        return _prompt_completion(record["prompt"], record["completion"], tokenizer, training)
    if "text" in record:
        return encode_text("", record["text"], tokenizer, training)
    raise InputError(f"no known columns among {sorted(record)}; a row has messages, prompt and completion, text, or "
                     f"tokens")


def finish_row(tokens: list[int], mask: list[float], training: bool) -> Row:
    """The row as arrays, its first token no target. Raises InputError for an empty one, or one without a target."""
    row = Row(np.asarray(tokens, np.int32), np.asarray(mask, np.float32))
    row.loss_mask[:1] = 0.0
    if not len(row.tokens):
        raise InputError("the row has no tokens")
    if training and not row.loss_mask.any():
        raise InputError("no token of the row is a target: its loss mask is 0 everywhere but at the first token, "
                         "which nothing predicts")
    return row


def pretokenised(record: Record, vocab_size: int) -> tuple[list[int], list[float]]:
    """`tokens` and `loss_mask` (1 everywhere unless given) as they are, once they are known to be sound."""
    tokens, mask = record["tokens"], record.get("loss_mask")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < vocab_size for token in tokens):
        raise InputError(f"tokens must be a list of ids from 0 to {vocab_size - 1}")
    if mask is None:
        mask = [1.0] * len(tokens)
    numbers = isinstance(mask, list) and all(type(value) in (int, float, bool) and 0 <= value < 1e6 for value in mask)
    if not numbers or len(mask) != len(tokens):
        raise InputError(f"loss_mask must hold one number from 0 on for each of the {len(tokens)} tokens")
    return tokens, mask


def _prompt_completion(prompt: Any, completion: Any, tokenizer: Tokenizer,
                       training: bool) -> tuple[list[int], list[float]]:
    if isinstance(prompt, str) and isinstance(completion, str):
        return encode_text(prompt, completion, tokenizer, training)
    if isinstance(prompt, list) and isinstance(completion, list):
        return encode_chat(tokenizer, prompt + completion, first_target=len(prompt))
    raise InputError("prompt and completion must both be strings or both be lists of messages")


def encode_text(prompt: str, text: str, tokenizer: Tokenizer, training: bool) -> tuple[list[int], list[float]]:
    """Tokens and loss mask of prompt + text, with the BOS that the tokenizer adds, and an end token for training.

    The whole is encoded at once; a token that straddles the border belongs to the prompt.
    """
    if not isinstance(text, str):
        raise InputError(f"text must be a string, not {type(text).__name__}")
    tokens, mask = _encode_whole(prompt, text, tokenizer)
    bos = start_tokens(tokenizer)
    tokens, mask = bos + tokens, [0.0] * len(bos) + mask
    return (tokens + [tokenizer.eos_id], mask + [1.0]) if training else (tokens, mask)


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


def encode_prompts(source: Any, tokenizer: Tokenizer | None, *, vocab_size: int,
                   max_length: int) -> list[list[int]]:
    """Token ids of prompts to be answered: of `tokens`, `messages`, or `prompt` (a string or messages).

    A string is a user's message where the tokenizer has a chat template, and is continued as it is otherwise, or where
    the row has a completion beside it (such rows are trained on as plain text).
    Messages that end with the assistant's are cut before it. Raises InputError, naming file and line, for a bad row.
    """
    prompts = []
    for index in range(len(source)):
        try:
            prompts.append(_encode_prompt(source[index], tokenizer, vocab_size))
            if not 0 < len(prompts[-1]) <= max_length:
                raise InputError(f"a prompt of {len(prompts[-1])} tokens, where 1 to {max_length} fit the model's "
                                 f"context beside the new ones; change the prompt or lower --max-new-tokens")
        except InputError as error:
            where = source.place(index) if hasattr(source, "place") else "--prompt"
            raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    return prompts


def _encode_prompt(record: Record, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    if "tokens" in record:
        return pretokenised(record, vocab_size)[0]
    if tokenizer is None:
        raise InputError("the model has no tokenizer, so rows must have tokens; put tokenizer.json into its folder")
    record = normalise(record)
    prompt = read_prompt(record)
    if isinstance(prompt, str) and tokenizer.chat_template and "completion" not in record:
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str):
        return start_tokens(tokenizer) + tokenizer.encode(prompt)
    if not isinstance(prompt, list):
        raise InputError(f"no known columns among {sorted(record)}; a row has prompt, messages or tokens")
    return encode_prompt(tokenizer, prompt)


def read_prompt(record: Record) -> Any:
    """The `messages` of a normalised row, without an assistant's last one, or its `prompt`; None without either."""
    prompt = record.get("messages", record.get("prompt"))
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict) and prompt[-1].get("role") == "assistant":
        return prompt[:-1]
    return prompt
