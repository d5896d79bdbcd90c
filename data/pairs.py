"""Preference pairs: one record to two rows, chosen and rejected, each with its own loss mask."""

from typing import Any, NamedTuple

from data.chat import encode_chat
from data.encode import Row, encode_text, finish_row, pretokenised
from data.records import Record, normalise
from data.tokenizer import Tokenizer
from errors import InputError

Encoded = tuple[list[int], list[float]]  # tokens and loss mask


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
    Raises InputError for other shapes, two equal answers, or an answer without any target.
    """
    if "chosen_tokens" in record and "rejected_tokens" in record:
        pair = [_named(side, _tokens, record, side, vocab_size) for side in Pair._fields]
    elif tokenizer is None:
        raise InputError("the model has no tokenizer, so rows must have chosen_tokens and rejected_tokens; put "
                         "tokenizer.json into its folder")
    elif "chosen" in record and "rejected" in record:
        pair = _encode_answers(normalise(record), tokenizer)
    else:
        raise InputError(f"no known columns among {sorted(record)}; a pair has chosen and rejected, with a prompt or "
                         f"without, or chosen_tokens and rejected_tokens")
    return _finish(*pair)


def _finish(chosen: Encoded, rejected: Encoded) -> Pair:
    _refuse_equal(chosen, rejected)
    return Pair(_named("chosen", finish_row, *chosen, True), _named("rejected", finish_row, *rejected, True))


def _refuse_equal(chosen: Any, rejected: Any) -> None:
    if chosen == rejected:
        raise InputError("chosen and rejected are the same, so neither is preferred; drop the row")


def _named(side: str, encode, *arguments) -> Any:
    try:
        return encode(*arguments)
    except InputError as error:
        raise InputError(f"{side}: {error}") from None


def _tokens(record: Record, side: str, vocab_size: int) -> Encoded:
    return pretokenised({"tokens": record[f"{side}_tokens"], "loss_mask": record.get(f"{side}_loss_mask")}, vocab_size)


def _encode_answers(record: Record, tokenizer: Tokenizer) -> list[Encoded]:
    prompt, answers = record.get("prompt"), [record["chosen"], record["rejected"]]
    _refuse_equal(*answers)
    if all(isinstance(answer, list) for answer in answers) and isinstance(prompt, str | list | None):
        chats = _chats(prompt, *answers)
        return [_named(side, encode_chat, tokenizer, *chat) for side, chat in zip(Pair._fields, chats)]
    if all(isinstance(answer, str) for answer in answers) and isinstance(prompt, str | None):
        pair = [encode_text(prompt or "", answer, tokenizer, True) for answer in answers]
        return _mask_common(*pair) if prompt is None else pair
    raise InputError("chosen and rejected must both be strings, with a string for a prompt if any, or both be lists of "
                     "messages")


def _mask_common(chosen: Encoded, rejected: Encoded) -> list[Encoded]:
    """The leading tokens that both have are the prompt; an answer that is the other's beginning keeps its end token."""
    common = min(_count_common(chosen[0], rejected[0]), len(chosen[0]) - 1, len(rejected[0]) - 1)
    return [(tokens, [0.0] * common + mask[common:]) for tokens, mask in (chosen, rejected)]


def _count_common(one: list, other: list) -> int:
    """The length of the longest prefix that both have."""
    return next((i for i, (left, right) in enumerate(zip(one, other)) if left != right), min(len(one), len(other)))


def _chats(prompt: Any, chosen: list, rejected: list) -> list[tuple[list, int]]:
    """For each answer the whole conversation and the index of its first message that may be a target."""
    if prompt is None:
        common = _count_common(chosen, rejected)
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
