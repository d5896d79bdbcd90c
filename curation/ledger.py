"""Nothing is lost unseen: every row that a stage drops stands in dropped/STAGE.parquet, and the counts must agree.

    read + made = kept + dropped

`made` are the rows that a stage adds: completions of a prompt beyond the first. counts.json has the numbers of every
stage and source; scripts.recount counts again, from the files alone.
"""

import contextlib
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from curation.rows import as_json
from curation.stages import Drop, Row
from errors import InputError
from files import whole_file

AT_ONCE = 4096
"""rows of a Parquet file's row group"""


@dataclasses.dataclass
class Counts:
    """Of one stage, each by source."""

    read: Counter = dataclasses.field(default_factory=Counter)
    kept: Counter = dataclasses.field(default_factory=Counter)
    dropped: Counter = dataclasses.field(default_factory=Counter)
    places_read: Counter = dataclasses.field(default_factory=Counter)
    """rows of the data that it was given, in however many completions"""
    places_left: Counter = dataclasses.field(default_factory=Counter)
    """rows of the data of which something is left"""
    summary: dict = dataclasses.field(default_factory=dict)
    """what else the stage tells of itself, by name"""
    read_sum: int = 0
    """hash_place of the rows that were read, and of those that were kept or dropped, added up modulo 2^64"""
    kept_sum: int = 0
    dropped_sum: int = 0

    @property
    def made(self) -> Counter:
        made = Counter(self.kept)
        made.update(self.dropped)
        made.subtract(self.read)
        return made

    def removal(self) -> dict[str, float]:
        """Share of a source's rows of which nothing is left."""
        return {source: 1 - self.places_left[source] / count for source, count in self.places_read.items()}

    def after(self) -> "Counts":
        """Of the next stage, before it has done anything."""
        return Counts(Counter(self.kept), places_read=Counter(self.places_left), read_sum=self.kept_sum)

    def keep(self, row: Row) -> None:
        self.kept[row.source] += 1
        self.kept_sum = (self.kept_sum + hash_place(*row.place, row.sample)) % 2**64

    def drop(self, row: Row) -> None:
        self.dropped[row.source] += 1
        self.dropped_sum = (self.dropped_sum + hash_place(*row.place, row.sample)) % 2**64

    def remarks(self) -> list[str]:
        """The summary in words."""
        return [f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in self.summary.items()]

    def as_dict(self) -> dict[str, Any]:
        return {"read": dict(self.read), "made": {name: count for name, count in self.made.items() if count},
                "kept": dict(self.kept), "dropped": dict(self.dropped), "places_read": dict(self.places_read),
                "places_left": dict(self.places_left), "summary": self.summary, "read_sum": self.read_sum,
                "kept_sum": self.kept_sum, "dropped_sum": self.dropped_sum}

    @staticmethod
    def from_dict(found: dict[str, Any]) -> "Counts":
        return Counts(**{name: Counter(value) if name in COUNTERS else value for name, value in found.items()
                         if name != "made"})


COUNTERS = ("read", "kept", "dropped", "places_read", "places_left")


def hash_place(source: str, index: int, sample: int) -> int:
    """64 bits of a row's place: the sum over all rows is the same in any order, and another where one is missing and
    one there twice."""
    return xxhash.xxh3_64_intdigest(f"{source}\0{index}\0{sample}".encode(errors="backslashreplace"))


class Places:
    """Counts rows of the data, whose completions come one after the other."""

    def __init__(self, counts: Counter):
        self._counts, self._last = counts, None

    def add(self, row: Row) -> None:
        if row.place != self._last:
            self._counts[row.source] += 1
            self._last = row.place


def check_counts(label: str, counts: Counts, makes_rows: bool) -> None:
    """Raises AssertionError where a stage has lost or doubled rows: kept + dropped is not read (+ made)."""
    wrong = {name: count for name, count in counts.made.items() if (count < 0 if makes_rows else count != 0)}
    others = not makes_rows and (counts.kept_sum + counts.dropped_sum - counts.read_sum) % 2**64
    if wrong or others:
        raise AssertionError(f"stage {label}: of {dict(counts.read)} rows it kept {dict(counts.kept)} and dropped "
                             f"{dict(counts.dropped)}; a stage gives every row back once, as Row or Drop")


def check_removal(label: str, name: str, counts: Counts, max_removal: float) -> None:
    """Raises InputError where a stage removes more of a source than it may, or everything; `name` is what max_removal
    has it by."""
    for source, share in counts.removal().items():
        if share > max_removal:
            lost = counts.places_read[source] - counts.places_left[source]
            raise InputError(f"stage {label} removes {lost} of {counts.places_read[source]} rows of {source} "
                             f"({share:.1%}), more than its max_removal of {max_removal:g}; look at dropped/"
                             f"{label}.parquet, then mend the stage, or allow it: max_removal: {{{name}: "
                             f"{math.ceil(share * 100) / 100:g}}}")
    if not sum(counts.kept.values()):
        raise InputError(f"stage {label} drops all {sum(counts.read.values())} rows that it is given; look at dropped/"
                         f"{label}.parquet, and mend the stage")


@contextlib.contextmanager
def drop_writer(path: Path, key: str) -> Iterator[Callable[[Drop], None]]:
    """A function that takes the rows a stage drops; the Parquet file appears whole.

    Columns: row, source, sample, reason, kept_instead (source, row and sample of the row kept in its place, or null),
    record and notes (JSON). `key` stands in the file's metadata: what run of the stage it is of. Raises InputError
    where it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    held: list[Drop] = []
    with whole_file(path) as partial, pq.ParquetWriter(partial, schema(key), compression="zstd") as writer:
        def flush() -> None:
            writer.write_table(pa.Table.from_pylist([_as_columns(drop) for drop in held], schema(key)))
            held.clear()

        def write(drop: Drop) -> None:
            held.append(drop)
            if len(held) == AT_ONCE:
                flush()

        yield write
        flush()


def schema(key: str) -> Any:
    import pyarrow as pa

    place = pa.struct([("source", pa.string()), ("row", pa.int64()), ("sample", pa.int64())])
    return pa.schema([("row", pa.int64()), ("source", pa.string()), ("sample", pa.int64()), ("reason", pa.string()),
                      ("kept_instead", place), ("record", pa.string()), ("notes", pa.string())],
                     {"key": key})


def _as_columns(drop: Drop) -> dict[str, Any]:
    row, instead = drop.row, drop.kept_instead
    return {"row": row.index, "source": row.source, "sample": row.sample, "reason": in_utf8(drop.reason),
            "kept_instead": instead and dict(zip(("source", "row", "sample"), (*instead, 0))),
            "record": in_utf8(json.dumps(row.record, ensure_ascii=False, default=str)),
            "notes": in_utf8(json.dumps(row.notes, ensure_ascii=False, default=str))}


def in_utf8(text: str) -> str:
    """The text with half a surrogate pair, which UTF-8 cannot hold, as its escape."""
    return text.encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def row_writer(path: Path) -> Iterator[Callable[[Row], None]]:
    """A function that takes the rows a stage keeps, for rows.FileRows; the file appears whole."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        yield lambda row: print(as_json(row), file=file)
