"""Rows of sources as token ids: what happens to bad and over-long ones, all rows at once, and a check of the first."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.encode import Row, encode_record, start_tokens
from data.sources import Source
from data.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from errors import InputError

COUNTS = ("rows_truncated", "rows_dropped", "rows_skipped")
"""what happened to rows that could not be taken as they are; counted with the row that is read next"""

SAMPLED = 1000
"""rows, evenly spaced, that a data set is known again by"""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """How a record becomes a row. Small to send to a worker: the tokenizer is opened where it is used."""

    tokenizer: Path | None
    vocab_size: int
    max_length: int | None
    """tokens of the longest row; None for any"""
    too_long: Literal["error", "truncate", "drop"] = "error"
    bad_rows: Literal["error", "skip"] = "error"
    training: bool = True
    """end texts with the end token and ask for a target; scoring takes a row as it is"""

    def open_tokenizer(self) -> Tokenizer | None:
        return _open_tokenizer(self.tokenizer)


@functools.cache
def _open_tokenizer(path: Path | None) -> Tokenizer | None:
    return load_tokenizer(path) if path is not None and has_tokenizer(path) else None


def read_row(index: int, source: Source, encoder: Encoder) -> tuple[Row | None, str | None]:
    """A row, or None where it is left out; and which of COUNTS it counts for, if any.

    Raises InputError, naming file and row, for a bad row or one that is too long, unless the encoder says otherwise.
    """
    try:
        row = encode_record(source[index], encoder.open_tokenizer(), vocab_size=encoder.vocab_size,
                            training=encoder.training)
    except InputError as error:
        if encoder.bad_rows == "skip":
            return None, "rows_skipped"
        place = source.place(index)
        raise InputError(str(error) if str(error).startswith(place) else f"{place}: {error}") from None
    if encoder.max_length is None or len(row.tokens) <= encoder.max_length:
        return row, None
    return _too_long(row, encoder, source.place(index))


def _too_long(row: Row, encoder: Encoder, place: str) -> tuple[Row | None, str]:
    if encoder.too_long == "error":
        raise InputError(f"{place}: {len(row.tokens)} tokens are longer than the {encoder.max_length} allowed; shorten "
                         f"or remove the row, raise --max-length up to the model's context, or set --too-long")
    cut = Row(*(each[: encoder.max_length] for each in row))
    if encoder.too_long == "drop" or (encoder.training and not cut.loss_mask.any()):
        return None, "rows_dropped"  # with no target left, nothing can be learnt from it
    return cut, "rows_truncated"


def read_all(sources: Sequence[Source], encoder: Encoder,
             track: Callable[[Any], Any] = iter) -> tuple[list[Row], dict[str, int]]:
    """All rows, in their order, and COUNTS of those that were cut or left out. `track` may draw a progress bar.

    Raises InputError where there are sources, but no row is left.
    """
    rows, counts = [], dict.fromkeys(COUNTS, 0)
    for source, index in track([(each, index) for each in sources for index in range(len(each))]):
        row, event = read_row(index, source, encoder)
        if row is not None:
            rows.append(row)
        if event is not None:
            counts[event] += 1
    if sources and not rows:
        raise InputError(f"{sources[0].place(0)} and those after it: no row is left ({counts}); look at --too-long, "
                         f"--bad-rows and --max-length")
    return rows, counts


def longest_row(rows: Sequence[Row]) -> int:
    """Tokens of the longest row."""
    return max(len(row.tokens) for row in rows)


def check_rows(sources: Sequence[Source], encoder: Encoder, limit: int,
               track: Callable[[Any], Any] = iter) -> int | None:
    """Reads up to `limit` rows, the first of every source, so that what is bad there is known before the first step.

    Returns the tokens of the longest row if these were all rows, else None.
    """
    share = limit // len(sources)
    longest = 0
    for source, index in track([(each, index) for each in sources for index in range(min(len(each), share))]):
        row, _ = read_row(index, source, encoder)
        longest = max(longest, 0 if row is None else len(row.tokens))
    return longest if longest and all(len(source) <= share for source in sources) else None


def windows(rows: Sequence[Row], length: int) -> list[Row]:
    """Rows cut into pieces of at most `length` tokens, each beginning with the last token of the piece before it.

    That token is context there and no target, so every target is scored exactly once.
    """
    pieces = []
    for tokens, mask in rows:
        for start in range(0, max(1, len(tokens) - 1), length - 1):
            piece = Row(tokens[start : start + length], mask[start : start + length].copy())
            piece.loss_mask[0] = 0.0
            pieces.append(piece)
    return pieces


def scored_bytes(sources: Sequence[Source], encoder: Encoder) -> int | None:
    """UTF-8 bytes of all texts, but for a first token that nothing predicts (no BOS); None where rows are no texts."""
    tokenizer, total = encoder.open_tokenizer(), 0
    for record in _records(sources):
        if tokenizer is None or not isinstance(record.get("text"), str):
            return None
        text = record["text"]
        unscored = 0 if start_tokens(tokenizer) else tokenizer.encode_with_offsets(text)[1][0][1]
        total += len(text[unscored:].encode())
    return total


def _records(sources: Sequence[Source]) -> Iterator[dict[str, Any]]:
    return (source[index] for source in sources for index in range(len(source)))


def fingerprint(sources: Sequence[Source]) -> str:
    """SHA-256 of the number of rows and of SAMPLED of them: the same command on changed rows is another experiment."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{len(source)}\n".encode())
        for index in sorted({index * len(source) // SAMPLED for index in range(SAMPLED)}):
            try:
                digest.update(json.dumps(source[index], sort_keys=True, default=str).encode())
            except InputError as error:  # named when its turn comes, or skipped if asked for
                digest.update(str(error).encode())
    return digest.hexdigest()


def columns(row: Row | None, event: str | None) -> dict[str, np.ndarray]:
    """tokens, loss_mask [T] and counts [T, 3], which hold the event at the row's first token; T is 0 without a row."""
    tokens, mask = row or Row(np.zeros(0, np.int32), np.zeros(0, np.float32))
    counts = np.zeros((max(1, len(tokens)), len(COUNTS)), np.int32)
    if event is not None:
        counts[0, COUNTS.index(event)] = 1
    return {"tokens": tokens, "loss_mask": mask, "counts": counts}
