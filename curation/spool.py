"""Rows that a stage reads twice: once to see all of them, once more to give each of them back."""

import array
import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from curation.stages import Row
from errors import InputError
from files import writing


class Spool:
    """Rows that can be iterated over again, where each of them stands, and its rank: 24 bytes of memory a row.

    Rows that are a sequence are read from there again; others are written to a file as they come.
    """

    def __init__(self, rows: Iterable[Row], prefer: str | None, path: Path):
        self._rows, self._prefer, self._path, self._sources = rows, prefer, path, {}
        self._source_ids, self._indices, self._samples = array.array("i"), array.array("q"), array.array("i")
        self._preferences = array.array("d")

    def __len__(self) -> int:
        """Rows that were read so far."""
        return len(self._indices)

    def read(self) -> Iterator[Row]:
        """The rows, for the first time."""
        for row in self._rows if isinstance(self._rows, Sequence) else self._written():
            self._source_ids.append(self._sources.setdefault(row.source, len(self._sources)))
            self._indices.append(row.index)
            self._samples.append(row.sample)
            self._preferences.append(0.0 if self._prefer is None else preference(row, self._prefer))
            yield row

    def _written(self) -> Iterator[Row]:
        with writing(self._path), self._path.open("w", encoding="utf-8") as file:
            for row in self._rows:
                print(json.dumps(vars(row)), file=file)
                yield row

    def __iter__(self) -> Iterator[Row]:
        """The rows again."""
        if isinstance(self._rows, Sequence):
            yield from self._rows
            return
        with self._path.open(encoding="utf-8") as file:
            yield from (Row(**json.loads(line)) for line in file)

    def place(self, number: int) -> tuple[str, int] | tuple[str, int, int]:
        """(source, index) of the row that came as `number`; its sample, too, if that is not 0."""
        source, sample = list(self._sources)[self._source_ids[number]], self._samples[number]
        return (source, self._indices[number], sample) if sample else (source, self._indices[number])

    def preference(self, number: int) -> float:
        """The number by which the row that came as `number` is ranked."""
        return self._preferences[number]

    def best_first(self) -> np.ndarray:
        """Numbers of the rows by what `prefer` names, highest first, equals in the order in which they came."""
        return np.argsort(-np.frombuffer(self._preferences, np.float64), kind="stable")


@contextlib.contextmanager
def spooling(rows: Iterable[Row], prefer: str | None = None) -> Iterator[tuple[Spool, Callable[[str], Path]]]:
    """The rows as a spool, and a function from a name to a path for what else is to lie on disk meanwhile. `prefer`
    names the number by which rows are ranked."""
    with contextlib.ExitStack() as stack:
        with writing(Path("a temporary folder (TMPDIR names where)")):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="temper-curation-"))
        yield Spool(rows, prefer, Path(folder) / "rows.jsonl"), lambda name: Path(folder) / name


def preference(row: Row, name: str) -> float:
    """A number of the row's notes, else of its record. Raises InputError where it has none of that name."""
    value = row.notes.get(name, row.record.get(name))
    if type(value) not in (int, float) or value != value:
        raise InputError(f"{row.source} row {row.index}: no number {name!r} to prefer rows by (it is {value!r}); put "
                         f"the stage that makes it before this one")
    return float(value)
