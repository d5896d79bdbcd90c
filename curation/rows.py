"""Rows on their way: read from the sources of --data, and kept in files between stages, all by random access."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from curation.stages import Row
from data.records import JsonlSource
from data.sources import DataSource, Source, open_in_order
from errors import InputError


class DataRows(Sequence):
    """The rows of sources one after the other. Raises InputError as sources do, and for one that is given twice."""

    def __init__(self, entries: Sequence[DataSource]):
        twice = next((name for name, count in Counter(each.source for each in entries).items() if count > 1), None)
        if twice is not None:
            raise InputError(f"--data {twice} is given twice, and rows are told apart by source and number; give it "
                             f"once")
        self._names, self._sources = [each.source for each in entries], open_in_order(entries)

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __getitem__(self, number: int) -> Row:
        index = range(len(self))[number]
        for name, source in zip(self._names, self._sources):
            if index < len(source):
                return Row(name, index, source[index])
            index -= len(source)
        raise IndexError(number)

    def __iter__(self) -> Iterator[Row]:
        return (Row(name, index, source[index]) for name, source in self.sources for index in range(len(source)))

    def counts(self) -> dict[str, int]:
        """Rows by source."""
        return {name: len(source) for name, source in self.sources}

    @property
    def sources(self) -> list[tuple[str, Source]]:
        return list(zip(self._names, self._sources))


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
