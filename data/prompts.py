"""Prompts to be answered and rewarded: token ids beside the columns that rewards take, in an endless shuffled order."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain

from data.columns import read_numbers
from data.encode import encode_prompts, read_prompt
from data.records import normalise
from data.sources import Source
from data.tokenizer import Tokenizer
from errors import InputError


class Prompt(NamedTuple):
    """One prompt."""

    tokens: list[int]
    text: Any
    """as the row has it: a string, or a list of messages without the assistant's last one"""
    columns: dict[str, Any]
    """the row's other columns, for rewards"""
    drawn: int = 0
    """tokens at the end that are the beginning of an answer, which is gone on with"""


def read_prompts(source: Source, tokenizer: Tokenizer | None, *, vocab_size: int, max_length: int,
                 drop_long: bool = False, numbers: Sequence[str] = ()) -> list[Prompt]:
    """All prompts of a source, without those that are too long if `drop_long`. Raises InputError, naming file and row,
    for a bad or too long one (data.encode), and where a column of `numbers` is none."""
    tokens = encode_prompts(source, tokenizer, vocab_size=vocab_size, max_length=max_length, drop_long=drop_long)
    return [_prompt(_checked(source, index, numbers), each) for index, each in enumerate(tokens) if each is not None]


def _checked(source: Source, index: int, numbers: Sequence[str]) -> dict[str, Any]:
    record = normalise(source[index])
    try:
        return record | {name: read_numbers(name, record.get(name), record) for name in numbers}
    except InputError as error:
        raise InputError(f"{source.place(index)}: {error}") from None


def _prompt(record: dict[str, Any], tokens: list[int]) -> Prompt:
    text, used = read_prompt(record), ("prompt", "messages", "tokens", "loss_mask")
    return Prompt(tokens, "" if text is None else text,
                  {name: value for name, value in record.items() if name not in used})


class PromptBatches:
    """Endless batches of prompts: of each source a new order every epoch, the sources mixed by weight.

    The order follows from the seed, so where it stands is the number of prompts taken.
    """

    def __init__(self, sources: Sequence[Sequence[Prompt]], weights: Sequence[float], batch_size: int, seed: int,
                 start: Sequence[int] | None = None):
        parts = [grain.MapDataset.range(len(prompts)).seed(seed + number).shuffle().repeat()
                 .map(functools.partial(_with_source, number=number)) for number, prompts in enumerate(sources)]
        self._order = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=weights)
        self._sources, self._batch_size, self._taken = sources, batch_size, start[0] if start else 0

    def __next__(self) -> list[Prompt]:
        drawn = [self._order[number] for number in range(self._taken, self._taken + self._batch_size)]
        self._taken += self._batch_size
        return [self._sources[number][index] for number, index in drawn]

    def position(self) -> list[int]:
        """What `start` takes."""
        return [self._taken]


def _with_source(index: int, number: int) -> tuple[int, int]:
    return number, index
