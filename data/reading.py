"""Rows of sources as token ids: what happens to bad and over-long ones, all rows at once, and a check of the first."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from batch import COUNT, Row, longest_row
from data.columns import SIDES, with_columns
from data.encode import encode_record, encode_rows, missing_start
from data.pairs import encode_labelled, encode_pair, mismatch
from data.records import Record, as_written
from data.sources import Source
from data.tokenizer import Tokenizer, open_tokenizer
from errors import InputError, shown

COUNTS = ("rows_truncated", "rows_dropped", "rows_skipped", "rows_added", "turns_dropped", "content_dropped",
          "reasoning_dropped", "tools_dropped")
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
    form: Literal["row", "turns", "pair", "labelled"] = "row"
    """what a record is: a row; a row, or several where the turns of a conversation must be apart (data.chat); two
    answers, chosen and rejected; or an answer with a label, which becomes two rows, the second of them another record's
    answer to this one's prompt"""
    columns: tuple[str, ...] = ()
    """numbers of the record that travel with its rows, because the objective asks for them (data.columns)"""
    absent: tuple[str, ...] = ()
    """those that it would take, but the first row has not"""

    def open_tokenizer(self) -> Tokenizer | None:
        return self.tokenizer and _open_tokenizer(self.tokenizer)


_open_tokenizer = functools.cache(open_tokenizer)


def read_record(index: int, source: Source, encoder: Encoder) -> tuple[tuple[Row, ...], Counter[str]]:
    """The rows of a record, none where it is left out; and what happened to them, by COUNTS.

    Raises InputError, naming file and row, for a bad record or one that is too long, unless the encoder says otherwise.
    """
    try:
        rows = _encode(index, source, encoder)
    except InputError as error:
        if encoder.bad_rows == "skip":
            return (), Counter(rows_skipped=1)
        raise InputError(f"{error}; --bad-rows skip leaves such rows out") from None
    events = sum((Counter(row.events) for row in rows), Counter())
    kept: tuple[Row, ...] = ()
    for each in _together(rows, encoder):
        fitting, event = _fit(each, encoder, source.place(index))
        kept, events[event] = kept + fitting, events[event] + 1
    return kept, +Counter({name: events[name] for name in COUNTS})


def _encode(index: int, source: Source, encoder: Encoder) -> tuple[Row, ...]:
    """The rows of one record; those of a labelled one need another record, too."""
    tokenizer, vocab_size = encoder.open_tokenizer(), encoder.vocab_size
    with _placed(source, index):
        record = source[index]
        if encoder.form == "pair":
            return _with_columns(encode_pair(record, tokenizer, vocab_size=vocab_size), record, encoder)
        if encoder.form in ("row", "turns"):
            encode = encode_rows if encoder.form == "turns" else _encode_one
            rows = encode(record, tokenizer, vocab_size=vocab_size, training=encoder.training)
            return _with_columns(rows, record, encoder)
        [own] = _with_columns([encode_labelled(record, tokenizer, vocab_size=vocab_size)], record, encoder)
    other = other_record(index, len(source))
    with _placed(source, other):
        answer = encode_labelled(source[other], tokenizer, vocab_size=vocab_size)
    other_row = mismatch(own, answer).cut(encoder.max_length or sys.maxsize)
    return own, other_row._replace(extra={name: np.zeros(len(other_row.tokens) if np.ndim(value) else (), np.float32)
                                          for name, value in own.extra.items()})


def _with_columns(rows: Sequence[Row], record: Record, encoder: Encoder) -> tuple[Row, ...]:
    sides = SIDES if encoder.form == "pair" else ("",) * len(rows)
    return tuple(with_columns(row, record, encoder.columns, encoder.absent, side) for row, side in zip(rows, sides))


def _encode_one(*arguments: Any, **options: Any) -> list[Row]:
    return [encode_record(*arguments, **options)]


@contextlib.contextmanager
def _placed(source: Source, index: int) -> Iterator[None]:
    """Names file and row in the message of an InputError."""
    try:
        yield
    except InputError as error:
        place = source.place(index)
        raise InputError(str(error) if str(error).startswith(place) else f"{place}: {error}") from None


def other_record(index: int, count: int) -> int:
    """The record whose answer is put to record `index`'s prompt: a golden section of the data set further on, so that
    two answers to one prompt, which often are neighbours or half a file apart, are not taken for each other's."""
    return (index + max(1, round(0.382 * count))) % count


def _fit(rows: tuple[Row, ...], encoder: Encoder, place: str) -> tuple[tuple[Row, ...], str]:
    """Rows that belong together within the encoder's length, or none; and which of COUNTS they count for, "" if any."""
    if encoder.max_length is None or longest_row(rows) <= encoder.max_length:
        return rows, ""
    if encoder.too_long == "error":
        raise InputError(f"{place}: {longest_row(rows)} tokens are longer than the {encoder.max_length} allowed; "
                         f"shorten or remove the row, raise --max-length up to the model's context, or set --too-long")
    cut = tuple(row.cut(encoder.max_length) for row in rows)
    if encoder.too_long == "drop" or (encoder.training and not all(row.loss_mask.any() for row in cut)):
        return (), "rows_dropped"  # with no target left, nothing can be learnt from it
    return cut, "rows_truncated"


def read_all(sources: Sequence[Source], encoder: Encoder,
             track: Callable[[Any], Any] = iter) -> tuple[list[Row], dict[str, int]]:
    """All rows, in their order, and COUNTS of what was cut or left out. `track` may draw a progress bar.

    Raises InputError where there are sources, but no row is left.
    """
    rows, counts = [], dict.fromkeys(COUNTS, 0)
    for source, index in track([(each, index) for each in sources for index in range(len(each))]):
        read, events = read_record(index, source, encoder)
        rows += read
        counts |= {name: counts[name] + count for name, count in events.items()}
    if sources and not rows:
        raise InputError(f"{sources[0].place(0)} and those after it: no row is left ({shown(counts)}); look at "
                         f"--too-long, --bad-rows and --max-length")
    return rows, counts


class Checked(NamedTuple):
    """What reading the first rows has found."""

    lengths: list[int]
    """tokens of each row of a batch; of rows that belong together, of the longest"""
    complete: bool
    """whether these were all rows"""
    counts: Counter[str]
    """what happened to rows, by COUNTS, of how many (`rows_checked`), of how many tokens (`tokens_checked`), and how
    many rows of batches they make (`rows_made`)"""


def check_rows(sources: Sequence[Source], encoder: Encoder, limit: int,
               track: Callable[[Any], Any] = iter) -> Checked:
    """Reads up to `limit` rows, the first of every source, so that what is bad there is known before the first step.
    Raises InputError where these were all rows and none can be trained on."""
    share = limit // len(sources)
    lengths, counts = [], Counter()
    for source, index in track([(each, index) for each in sources for index in range(min(len(each), share))]):
        rows, events = read_record(index, source, encoder)
        counts = counts + events + Counter(rows_checked=1, rows_made=rows_made(rows, encoder),
                                           tokens_checked=sum(len(row.tokens) for row in rows))
        lengths += [longest_row(together) for together in _together(rows, encoder)]
    complete = all(len(source) <= share for source in sources)
    if complete and not lengths:
        raise none_trainable(counts["rows_checked"], counts)
    return Checked(lengths, complete, counts)


def none_trainable(number: int, counts: Mapping[str, int]) -> InputError:
    """The error where none of so many records gives a row, with what happened to them."""
    return InputError(f"none of {number} rows can be trained on: "
                      f"{', '.join(f'{name} {counts[name]}' for name in COUNTS if counts[name])}; "
                      f"look at --too-long, --bad-rows and --max-length")


def rows_made(rows: Sequence[Row], encoder: Encoder) -> int:
    """How many rows of a batch the rows of a record are: the two answers of a pair or a label are one."""
    return len(_together(rows, encoder))


def _together(rows: tuple[Row, ...], encoder: Encoder) -> list[tuple[Row, ...]]:
    """Rows of a record by those that belong together."""
    return [(row,) for row in rows] if encoder.form == "turns" else [rows] if rows else []


def windows(rows: Sequence[Row], length: int) -> list[Row]:
    """Rows cut into pieces of at most `length` tokens, each beginning with the last token of the piece before it.

    That token is context there and no target, so every target is scored exactly once.
    """
    pieces = []
    for tokens, mask, *_ in rows:
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
        unscored = 0 if missing_start(text, tokenizer) else tokenizer.encode_with_offsets(text)[1][0][1]
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
                digest.update(json.dumps(as_written(source, index), sort_keys=True, default=str).encode())
            except InputError as error:  # named when its turn comes, or skipped if asked for
                digest.update(str(error).encode())
    return digest.hexdigest()


def join_columns(rows: Sequence[Row], events: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The rows of a record end to end: tokens, loss_mask, ... [T]; counts [T, COUNTS], which hold the events at the
    first token; where there are several rows, their `lengths` and other numbers of each, [rows]. T is 0 without rows.
    """
    parts = [row.columns() for row in rows or [Row(np.zeros(0, np.int32), np.zeros(0, np.float32))]]
    joined = {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}
    counts = np.zeros((max(1, len(joined["tokens"])), len(COUNTS)), np.int32)
    counts[0] = [events.get(name, 0) for name in COUNTS]
    lengths = {"lengths": np.asarray([len(part["tokens"]) for part in parts])} if len(parts) > 1 else {}
    return joined | {"counts": counts} | lengths


def part_columns(joined: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What join_columns joined, row by row; the events, as numbers count/NAME, are the first row's."""
    total = len(joined["tokens"])
    lengths = joined.get("lengths", np.asarray([total]))
    ends = np.cumsum(lengths)[:-1]
    parts: list[dict[str, np.ndarray]] = [{} for _ in lengths]
    for name, array in joined.items():
        if name not in ("counts", "lengths", "epoch_end"):
            pieces = np.split(array, ends) if len(array) == total else list(array)
            for part, piece in zip(parts, pieces, strict=True):
                part[name] = piece
    return [part | count_columns(joined["counts"] * (number == 0)) for number, part in enumerate(parts)]


def count_columns(counts: np.ndarray) -> dict[str, np.ndarray]:
    """The sums of counts [T, COUNTS] as numbers count/NAME."""
    return {COUNT + name: np.asarray(count, np.int32) for name, count in zip(COUNTS, counts.sum(0), strict=True)}
