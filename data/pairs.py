"""Preferences: pairs, one record to two rows, chosen and rejected; and answers with a label."""

import functools
from typing import Any, NamedTuple

import numpy as np

from batch import Row
from data.chat import Encoded, encode_chat
from data.encode import check_ids, encode_record, encode_text, finish_row, pretokenised, template_columns
from data.records import Record, normalise
from data.tokenizer import Tokenizer
from errors import InputError, shown

DIFFERENT_PROMPTS = "chosen and rejected answer different prompts, so they cannot be compared; mend or drop the row"


class Pair(NamedTuple):
    """Two answers to one prompt, as rows of tokens and loss mask; the prompt's tokens are no targets."""

    chosen: Row
    rejected: Row


def encode_pair(record: Record, tokenizer: Tokenizer | None, *, vocab_size: int) -> Pair:
    """Pair of a record with `chosen` and `rejected`, `prompt` given or implied, or with their tokens.

    - `chosen_tokens`, `rejected_tokens`, and optionally `chosen_loss_mask`, `rejected_loss_mask`: taken as they are.
    - Strings: beside a `prompt` they are what follows it. Without one, the tokens that both begin with are the prompt,
      so that none straddles the border: a text is cut only where both have a token begin. An end token is added.
    - Messages: beside a `prompt` (messages, or a string: what the user says) they are what follows it, or the whole
      conversation with the prompt in it. Without one, the messages that both begin with are the prompt.
    Raises InputError for other shapes, two equal answers, different prompts, or an empty answer.
    """
    if "chosen_tokens" in record and "rejected_tokens" in record:
        return _pretokenised_pair(record, vocab_size)
    if tokenizer is None:
        raise InputError("the model has no tokenizer, so rows must have chosen_tokens and rejected_tokens; put "
                         "tokenizer.json into its folder")
    if "chosen" not in record or "rejected" not in record:
        raise InputError(f"no known columns among {', '.join(sorted(record))}; a pair has chosen and rejected, "
                         f"with a prompt or without, or chosen_tokens and rejected_tokens")
    pair = _encode_answers(normalise(record), tokenizer)
    for side, answer in zip(Pair._fields, pair):
        _named(side, check_ids, answer.tokens, tokenizer, vocab_size)
    return _finish(*pair)


def _pretokenised_pair(record: Record, vocab_size: int) -> Pair:
    pair = [_named(side, _tokens, record, side, vocab_size) for side in Pair._fields]
    _refuse_different_prompts(record, *pair)
    return _finish(*pair)


def _finish(chosen: Encoded, rejected: Encoded) -> Pair:
    _refuse_equal(chosen[:2], rejected[:2])
    return Pair(*(_named(side, finish_row, encoded, True)
                  for side, encoded in zip(Pair._fields, (chosen, rejected))))


def _refuse_equal(chosen: Any, rejected: Any) -> None:
    if chosen == rejected:
        raise InputError("chosen and rejected are the same, so neither is preferred; mend or drop the row")


def _named(side: str, encode, *arguments) -> Any:
    try:
        return encode(*arguments)
    except InputError as error:
        raise InputError(f"{side}: {error}") from None


def _tokens(record: Record, side: str, vocab_size: int) -> Encoded:
    return pretokenised({"tokens": record[f"{side}_tokens"], "loss_mask": record.get(f"{side}_loss_mask")}, vocab_size)


def _refuse_different_prompts(record: Record, chosen: Encoded, rejected: Encoded) -> None:
    """Where masks say what the prompts are."""
    if record.get("chosen_loss_mask") is None or record.get("rejected_loss_mask") is None:
        return
    prompts = [tokens[: next((i for i, target in enumerate(mask) if target), 0)]
               for tokens, mask, _ in (chosen, rejected)]
    if prompts[0] != prompts[1]:
        raise InputError(f"{DIFFERENT_PROMPTS} (the tokens before the first target)")


def _encode_answers(record: Record, tokenizer: Tokenizer) -> list[Encoded]:
    prompt, answers = record.get("prompt"), [record["chosen"], record["rejected"]]
    _refuse_equal(*answers)
    for side, answer in zip(Pair._fields, answers):
        if isinstance(answer, str) and not answer.strip():
            raise InputError(f"{side}: the answer is empty; fill it or drop the row")
    if all(isinstance(answer, list) for answer in answers) and isinstance(prompt, str | list | None):
        chats = _chats(prompt, *answers)
        columns = template_columns(record)
        return [_named(side, functools.partial(encode_chat, **columns), tokenizer, *chat)
                for side, chat in zip(Pair._fields, chats)]
    if all(isinstance(answer, str) for answer in answers) and isinstance(prompt, str | None):
        pair = [encode_text(prompt or "", answer, tokenizer, True) for answer in answers]
        return _mask_common(*pair) if prompt is None else pair
    raise InputError("chosen and rejected must both be strings, with a string for a prompt if any, or both be lists of "
                     "messages")


def _mask_common(chosen: Encoded, rejected: Encoded) -> list[Encoded]:
    """The leading tokens that both have are the prompt; an answer that is the other's beginning keeps its end token."""
    common = min(_count_common(chosen[0], rejected[0]), len(chosen[0]) - 1, len(rejected[0]) - 1)
    if not common:
        raise InputError(f"{DIFFERENT_PROMPTS} (no token is common at their beginning, and there is no column prompt; "
                         f"one of another name is renamed by FILE[prompt=NAME])")
    return [Encoded(tokens, [0.0] * common + mask[common:]) for tokens, mask, _ in (chosen, rejected)]


def _count_common(one: list, other: list) -> int:
    """The length of the longest prefix that both have."""
    return next((i for i, (left, right) in enumerate(zip(one, other)) if left != right), min(len(one), len(other)))


def _chats(prompt: Any, chosen: list, rejected: list) -> list[tuple[list, int]]:
    """For each answer the whole conversation and the index of its first message that may be a target."""
    if prompt is None:
        common = _count_common(chosen, rejected)
        if any(isinstance(message, dict) and message.get("role") in ("user", "system")
               for answer in (chosen, rejected) for message in answer[common : common + 1]):
            raise InputError(f"{DIFFERENT_PROMPTS} (at message {common})")
        return [(chosen, common), (rejected, common)]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [_named(side, _whole, messages, answer) for side, answer in zip(Pair._fields, (chosen, rejected))]


def _whole(prompt: list, answer: list) -> tuple[list, int]:
    """A conversation that is whole begins with the prompt, or with a system message and then the prompt."""
    first = answer[0].get("role") if answer and isinstance(answer[0], dict) else None
    for skipped in (0, 1) if first == "system" else (0,):
        if prompt and answer[skipped : skipped + len(prompt)] == prompt:
            return answer, skipped + len(prompt)
    if first not in ("assistant", "tool"):
        raise InputError("begins neither with the prompt nor with the assistant's turn; make prompt and answer agree")
    return prompt + answer, len(prompt)


def encode_labelled(record: Record, tokenizer: Tokenizer | None, *, vocab_size: int) -> Row:
    """Row of a record that encode_record takes, with its `label`: true for a desirable answer, false for another (or 1
    and 0, or either as a word).

    Raises InputError for a label that is missing or neither, and for an empty answer.
    """
    if "label" not in record:
        raise InputError(f"no column label among {', '.join(sorted(record))}; a row has prompt and completion, "
                         f"messages or tokens, and a label, true or false")
    label = read_label(record["label"])
    if isinstance(record.get("completion"), str) and not record["completion"].strip():
        raise InputError("the completion is empty; fill it or drop the row")
    row = encode_record(record, tokenizer, vocab_size=vocab_size, training=True)
    return row._replace(extra={"label": label})


def read_label(label: Any) -> float:
    """1 or 0 of a label. Raises InputError for what is neither."""
    word = label.strip().lower() if isinstance(label, str) else label
    for number, spellings in ((1.0, (True, "true", "1")), (0.0, (False, "false", "0"))):
        if isinstance(word, str | int | float | np.generic) and word in spellings:
            return number
    what = shown(label) if isinstance(label, str | int | float) else f"a {type(label).__name__}"
    raise InputError(f"label is {what} but must be true or false, or 1 or 0")


def mismatch(own: Row, other: Row) -> Row:
    """The prompt of one row with the answer of another, which it was not given for (KTO's reference point)."""
    begin, answer = int(np.argmax(own.loss_mask > 0)), int(np.argmax(other.loss_mask > 0))
    mask = np.concatenate([np.zeros(begin, np.float32), other.loss_mask[answer:]])
    return Row(np.concatenate([own.tokens[:begin], other.tokens[answer:]]), mask)
