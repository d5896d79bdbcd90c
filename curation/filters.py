"""Filters that look at one row and need no model: length, repetition, malformed chats, phrases."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from curation.rows import UNREADABLE
from curation.stages import Drop, Row, Stage, by_row
from curation.words import text_of_row
from errors import InputError


@by_row
def length(*, tokenizer: str = "smollm2-135m-instruct", min_tokens: int = 1, max_tokens: int | None = None,
           columns: tuple[str, ...] = ()) -> Stage:
    """Drops rows of fewer than `min_tokens` or more than `max_tokens` tokens of text, or of `columns` alone.

    `tokenizer` is a tokenizer's folder or file, or a model as --model takes it. What a chat template adds is not
    counted. The note `tokens` has the number.
    """
    if min_tokens < 0 or (max_tokens is not None and max_tokens < min_tokens):
        raise InputError(f"min_tokens {min_tokens} and max_tokens {max_tokens} leave no row; give 0 or more, in order")
    encode = _open_tokenizer(tokenizer).encode

    def problem(row: Row) -> str | None:
        text = text_of_row(row, columns)
        try:
            row.notes["tokens"] = count = len(encode(text))
        except InputError as error:  # no valid Unicode
            return str(error)
        if count < min_tokens:
            return f"{count} tokens, fewer than {min_tokens}"
        return f"{count} tokens, more than {max_tokens}" if max_tokens is not None and count > max_tokens else None

    return dropping(problem)


@by_row
def unreadable() -> Stage:
    """Drops lines that are no rows: broken JSON, no object, without a column that --data renames. It is the first stage
    of a recipe; without it such a line ends the run."""
    return dropping(lambda row: row.notes.get(UNREADABLE))


def dropping(problem: Callable[[Row], str | None]) -> Stage:
    """The stage that drops the rows that have a problem, which is the reason."""

    def stage(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        for row in rows:
            reason = problem(row)
            yield row if reason is None else Drop(row, reason)

    return stage


def _open_tokenizer(reference: str) -> Any:
    """Of a folder or file that holds one, else of a model or run."""
    from data.tokenizer import has_tokenizer, open_tokenizer

    path = Path(reference)
    if not path.exists() or not has_tokenizer(path):
        from training.runs import open_model

        path = open_model(reference).tokenizer
    tokenizer = open_tokenizer(path)
    if tokenizer is None:
        raise InputError(f"{reference} has no tokenizer; give the folder of one that has")
    return tokenizer
