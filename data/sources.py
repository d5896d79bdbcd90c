"""Where rows come from: JSON lines, Parquet, a Hub data set, TFDS or reasoning-gym, all read by random access.

A source is opened by name (`open_source`) and then is a sequence of records that can say where each of them stands.
Its pickle is small: worker processes open the same files again.
"""

import bisect
import dataclasses
import glob
import itertools
import math
import os
import re
from collections.abc import Sequence
from typing import Any, Protocol

from data.messages import parse_template_kwargs, read_template_kwargs
from data.records import JsonlSource, Record, as_written
from data.templates import check_template_kwargs
from data.tokenizer import Tokenizer
from errors import InputError, shown

KINDS = ("FILE.jsonl, FILE.jsonl.gz, FILE.parquet (or a glob of them), hf:OWNER/NAME, tfds:NAME or gym:TASK, then "
         "maybe [ours=theirs, ...] for columns, and @WEIGHT")


class Source(Protocol):
    """Rows by index, 0 to len - 1. IndexError beyond, so that a source can be iterated over."""

    def __len__(self) -> int:
        """Rows, at least one."""

    def __getitem__(self, index: int) -> Record:
        """A row as plain Python values. Raises InputError, naming the place, for one that cannot be read."""

    def place(self, index: int) -> str:
        """Where a row stands: 'file.jsonl:17' (line, from 1), 'file.parquet row 4' (from 0)."""


@dataclasses.dataclass(frozen=True)
class DataSource:
    """One entry of --data. `weight` is its share of a mixture; `columns` renames, from our name to theirs."""

    source: str
    weight: float = 1.0
    columns: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.source, str) or not self.source:
            raise InputError(f"data {self.source!r}: names no source; give {KINDS}")
        if type(self.weight) not in (int, float) or not 0 < self.weight < math.inf:
            raise InputError(f"data {self.source}: weight {shown(self.weight)} is no number above 0; give one or none")
        names = [*self.columns, *self.columns.values()] if isinstance(self.columns, dict) else [None]
        if not all(isinstance(name, str) for name in names):
            raise InputError(f"data {self.source}: columns are {shown(self.columns)}; give our name: their name, as "
                             f"strings")

    def __str__(self) -> str:
        weight = "" if self.weight == 1 else f"@{self.weight:g}"
        columns = ", ".join(f"{ours} from {theirs}" for ours, theirs in self.columns.items())
        return f"{self.source}{weight}{f' ({columns})' if columns else ''}"


def parse_source(text: str) -> DataSource:
    """SOURCE, SOURCE@WEIGHT, and either with SOURCE[prompt=question, ...] for columns of other names, ours before
    theirs; or a DataSource's fields in YAML, {source: ..., columns: {prompt: question}}. An "@" that no number follows
    and brackets without "=" are part of the name. Raises InputError for other fields, and for columns that are no
    pairs of names."""
    if text.startswith("{"):
        return _parse_fields(text)
    source, _, weight = text.rpartition("@")
    try:
        source, number = (source, float(weight)) if "@" in text else (text, 1.0)
    except ValueError:
        source, number = text, 1.0
    name, columns = _split_columns(source)
    return DataSource(name, number, columns)


def _split_columns(text: str) -> tuple[str, dict[str, str]]:
    """("pairs.jsonl", {"prompt": "question"}) of "pairs.jsonl[prompt=question]"."""
    found = re.fullmatch(r"(.+)\[([^\[\]]*=[^\[\]]*)\]", text, re.DOTALL)
    if not found:
        return text, {}
    pairs = [[name.strip() for name in part.split("=")] for part in found[2].split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs) or len({ours for ours, *_ in pairs}) < len(pairs):
        raise InputError(f"data {text}: [{found[2]}] must rename columns, ours=theirs, each once, with commas in "
                         f"between, as in [prompt=instruction, chosen=good]")
    return found[1], dict(pairs)


def _parse_fields(text: str) -> DataSource:
    import yaml

    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"data {text}: not readable as YAML; the form is "
                         f"{{source: NAME, columns: {{ours: theirs}}}}") from None
    known = [field.name for field in dataclasses.fields(DataSource)]
    unknown = [name for name in fields if name not in known]
    if unknown or "source" not in fields:
        raise InputError(f"data {text}: {f'unknown key {unknown[0]!r}' if unknown else 'no source'}; known are "
                         f"{', '.join(known)}")
    return DataSource(**fields)


def open_source(data: DataSource) -> Source:
    """The rows behind a name, with their columns renamed.

    Raises InputError for a name of no known kind, for what cannot be read, and for what holds no rows.
    """
    source = _open(data.source)
    if not len(source):
        raise InputError(f"data {data.source}: holds no rows; give a data set with some")
    return Renamed(source, data.columns) if data.columns else source


def open_in_order(entries: Sequence[DataSource]) -> list[Source]:
    """Sources that are read one after the other. Raises InputError for a weight, which is a mixture's."""
    for each in entries:
        if each.weight != 1:
            raise InputError(f"data {each}: a weight mixes several sources of training data, and means nothing here; "
                             f"leave it out")
    return [open_source(each) for each in entries]


def open_mixture(entries: Sequence[DataSource]) -> list[Source]:
    """Sources that are mixed by their weights. Raises InputError for the weight of the only one."""
    return open_in_order(entries) if len(entries) == 1 else [open_source(each) for each in entries]


def files_of(source: str) -> list[str]:
    """The files that a source of this name is read from; none where it is no file's name."""
    scheme = source.partition(":")[0]
    is_file = source.endswith((".parquet", ".jsonl", ".jsonl.gz")) and scheme not in ("tfds", "gym", "hf")
    return _files(source) if is_file else []


def file_ids(source: str) -> dict[tuple[int, int], str]:
    """Of each of these files that is there what it is known by, whatever its names are, and its name. Raises
    InputError for a file that has two names among them."""
    found: dict[tuple[int, int], str] = {}
    for path in filter(os.path.exists, files_of(source)):
        known = os.stat(path)
        other = found.setdefault((known.st_dev, known.st_ino), path)
        if other != path:
            raise InputError(f"data {source}: {path} is the same file as {other}; leave one of them out")
    return found


def _open(text: str) -> Source:
    scheme, _, spec = text.partition(":")
    if scheme == "tfds":
        from data.tfds_source import open_tfds

        return open_tfds(spec)
    if scheme == "gym":
        from data.gym_source import GymSource

        return GymSource(spec)
    if scheme == "hf":
        from data.arrow_source import open_hub

        return open_hub(spec)
    if text.endswith(".parquet"):
        from data.arrow_source import open_parquet

        return open_parquet(_files(text))
    if text.endswith((".jsonl", ".jsonl.gz")):
        sources = [JsonlSource(path) for path in _files(text)]
        return Concatenated(sources) if len(sources) > 1 else sources[0]
    raise InputError(f"data {text}: of no known kind; give {KINDS}")


def _files(pattern: str) -> list[str]:
    """The file of that very name, else the files that match, sorted."""
    if os.path.exists(pattern) or not any(character in pattern for character in "*?["):
        return [pattern]
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise InputError(f"data {pattern}: matches no file; mend the pattern (** goes through folders)")
    return paths


class Concatenated:
    """Sources one after the other."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        source, row = self._find(index)
        return source[row]

    def as_written(self, index: int) -> Record:
        source, row = self._find(index)
        return as_written(source, row)

    def place(self, index: int) -> str:
        source, row = self._find(index)
        return source.place(row)

    def _find(self, index: int) -> tuple[Source, int]:
        index = range(len(self))[index]
        at = bisect.bisect_right(self._ends, index)
        return self._sources[at], index - self._ends[at] + len(self._sources[at])


class Renamed:
    """A source whose columns go by our names. A column that was renamed is gone under its old one."""

    def __init__(self, source: Source, columns: dict[str, str]):
        self._source, self._columns = source, columns

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return self._rename(self._source[index], index)

    def as_written(self, index: int) -> Record:
        return self._rename(as_written(self._source, index), index)

    def place(self, index: int) -> str:
        return self._source.place(index)

    def _rename(self, record: Record, index: int) -> Record:
        for ours, theirs in self._columns.items():
            if theirs not in record and theirs not in as_written(self._source, index):
                raise InputError(f"{self.place(index)}: no column {theirs!r} to take {ours!r} from, only "
                                 f"{', '.join(sorted(record))}; mend the data's columns or the row")
        rest = {name: value for name, value in record.items() if name not in self._columns.values()}
        return rest | {ours: record[theirs] for ours, theirs in self._columns.items() if theirs in record}


def with_template_kwargs(sources: Sequence[Source], text: str | None, tokenizer: Tokenizer | None) -> list[Source]:
    """Sources whose rows all have the `chat_template_kwargs` that a flag gives. Raises InputError for what is no
    mapping, and for names that the tokenizer's template does not look at."""
    kwargs = parse_template_kwargs(text)
    check_template_kwargs(kwargs, tokenizer)
    return [WithTemplateKwargs(each, dict(kwargs)) for each in sources] if kwargs else list(sources)


class WithTemplateKwargs:
    """A source whose rows all have `chat_template_kwargs`; a row's own come before these."""

    def __init__(self, source: Source, kwargs: dict[str, Any]):
        self._source, self._kwargs = source, kwargs

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        own = read_template_kwargs(record.get("chat_template_kwargs"))
        return record | {"chat_template_kwargs": self._kwargs | dict(own)}

    def place(self, index: int) -> str:
        return self._source.place(index)
