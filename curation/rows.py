"""Rows on their way: read from the sources of --data, and kept in files between stages, all by random access."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from curation.stages import Row
from data.records import JsonlSource, UnreadableRow
from data.sources import DataSource, Source, file_ids, open_in_order
from errors import InputError

UNREADABLE = "unreadable"
"""the note that says why a line is no row"""


class DataRows(Sequence):
    """The rows of sources one after the other. Raises InputError as sources do, and for data that is given twice; but a
    line that is no row becomes one with a note, UNREADABLE, where the recipe `drops_unreadable` ones."""

    def __init__(self, entries: Sequence[DataSource], drops_unreadable: bool = False):
        _check_apart(entries)
        self._names, self._sources = [each.source for each in entries], open_in_order(entries)
        self._drops_unreadable = drops_unreadable

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __getitem__(self, number: int) -> Row:
        index = range(len(self))[number]
        for name, source in zip(self._names, self._sources):
            if index < len(source):
                return self._read(name, source, index)
            index -= len(source)
        raise IndexError(number)

    def __iter__(self) -> Iterator[Row]:
        return (self._read(name, source, index) for name, source in self.sources for index in range(len(source)))

    def _read(self, name: str, source: Source, index: int) -> Row:
        try:
            return Row(name, index, source[index])
        except InputError as error:
            if not self._drops_unreadable:
                raise
            line = {"line": error.text} if isinstance(error, UnreadableRow) else {}
            return Row(name, index, line, {UNREADABLE: str(error)})

    def places(self) -> Iterator[tuple[str, int, int]]:
        """(source, index, sample) of every row."""
        return ((name, index, 0) for name, source in self.sources for index in range(len(source)))

    def counts(self) -> dict[str, int]:
        """Rows by source."""
        return {name: len(source) for name, source in self.sources}

    @property
    def sources(self) -> list[tuple[str, Source]]:
        return list(zip(self._names, self._sources))


def _check_apart(entries: Sequence[DataSource]) -> None:
    """Raises InputError for a source that is given twice, or a file that has two names among them."""
    twice = next((name for name, count in Counter(each.source for each in entries).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"--data {twice} is given twice, and rows are told apart by source and number; give it once")
    known: dict[tuple[int, int], str] = {}
    for each in entries:
        files = file_ids(each.source)
        same = next((key for key in files if key in known), None)
        if same is not None:
            raise InputError(f"--data {each.source}: {files[same]} is the same file as {known[same]}, which is given "
                             f"before it; give it once")
        known |= files


class FileRows(Sequence):
    """The rows that a stage has kept, in a file of as_json's lines, which may have none."""

    def __init__(self, path: Path):
        self.path = path
        self._source = JsonlSource(path) if path.stat().st_size else ()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> Row:
        return Row(**self._source.as_written(number)) if len(self) else ()[number]


def as_json(row: Row) -> str:
    """A row as a line of JSON; a number comes back from it to the last bit."""
    return json.dumps(vars(row), ensure_ascii=False, default=str)


def fingerprint(rows: Sequence[Row]) -> str:
    """SHA-256 of all rows, in order: by it data is known again."""
    found = hashlib.sha256()
    for row in rows:
        found.update(f"{as_json(row)}\n".encode(errors="backslashreplace"))
    return found.hexdigest()


def digest(*values: Any) -> str:
    """16 characters of the SHA-256 of values as JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
