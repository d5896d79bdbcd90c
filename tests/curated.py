"""Stages that tests of curation name in recipes."""

import os
import signal
from pathlib import Path

from curation.stages import Drop, by_row
from errors import InputError


@by_row
def shorter(*, than: int = 10, label: str = ""):
    """Drops texts of `than` characters or more."""
    def stage(rows):
        for row in rows:
            row.notes["length"] = len(row.record["text"]) / 3
            yield Drop(row, f"{len(row.record['text'])} characters") if len(row.record["text"]) >= than else row

    return stage


def distinct(*, fail_after: int | None = None):
    """Keeps the first of equal texts."""
    def stage(rows):
        first = {}
        for number, row in enumerate(rows):
            if number == fail_after:
                raise KeyboardInterrupt
            place = first.setdefault(row.record["text"], row.place)
            yield row if place == row.place else Drop(row, "the same text", place)

    return stage


def lossy():
    """Loses a row."""
    return lambda rows: (row for row in rows if row.index != 1)


def doubles():
    """Gives the first row twice, and the second not at all."""
    return lambda rows: (rows[0] if row.index == 1 else row for row in rows)


def renames():
    """Says that its last row is another one."""
    def stage(rows):
        for row in rows:
            row.index += 1000 * (row.index == 99)
            yield row

    return stage


def odd():
    return lambda rows: ("a row" for _ in rows)


def shapeless():
    """Forgets to give its stage."""


def positional(than: int):
    return shorter(than=than)


def unresolved(*, than: "Nothing" = 1):  # noqa: F821
    return shorter(than=than)


def sour(*, folder):
    def stage(rows):
        raise InputError("never")
        yield

    return stage


def judged(*, model: str):
    """Notes a verdict, as a stage with a model would."""
    def stage(rows):
        for row in rows:
            row.notes["verdict"] = "good"
            yield row

    return stage


def fussy(prompts, completions, **columns):
    """A reward that has no verdict on the first row, and fails on the others."""
    if len(prompts) > 1 or prompts[0] != "What is it?":
        raise ValueError("fussy")
    return [None]


def letters(texts):
    """An encoder: how often each letter is in a text."""
    return [[text.count(chr(letter)) for letter in range(97, 123)] for text in texts]


@by_row
def deadly(*, marker: str):
    """Keeps rows; the first worker that meets row 100 is killed there."""
    def stage(rows):
        for row in rows:
            if row.index == 100 and not os.path.exists(marker):
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield row

    return stage
