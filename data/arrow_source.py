"""Parquet files and Hub data sets: both become a memory-mapped Arrow file in the cache of `datasets`."""

import bisect
import glob
import itertools
import logging
import sys
from collections.abc import Sequence
from typing import Any

from data.records import Record, without_null
from data.sources import Concatenated, Source
from errors import InputError


class ArrowSource:
    """The rows of a `datasets.Dataset`, which its pickle names by the file that it is mapped from.

    `parts` are (name, rows) of what the data set was put together from, in order. Arrow gives every row every column
    and every message every key; those that are None are dropped again.
    """

    def __init__(self, dataset, parts: Sequence[tuple[str, int]]):
        self._dataset = dataset
        self._names = [name for name, _ in parts]
        self._ends = list(itertools.accumulate(rows for _, rows in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        return without_null(self._dataset[range(len(self))[index]])

    def place(self, index: int) -> str:
        """`name row i`, i from 0 in the file or data set of that name."""
        index = range(len(self))[index]
        part = bisect.bisect_right(self._ends, index)
        return f"{self._names[part]} row {index - (self._ends[part - 1] if part else 0)}"


def open_parquet(paths: Sequence[str]) -> Source:
    """The rows of Parquet files, one file after the other. They need not have the same columns, or types of them.

    Raises InputError, naming the file, for one that is missing, damaged or empty.
    """
    footers = [(str(path), *_read_footer(str(path))) for path in paths]
    alike = [list(group) for _, group in itertools.groupby(footers, lambda footer: footer[2])]
    sources = [_open_alike([(path, rows) for path, rows, _ in group]) for group in alike]
    return Concatenated(sources) if len(sources) > 1 else sources[0]


def _open_alike(parts: Sequence[tuple[str, int]]) -> ArrowSource:
    """Files of one schema, given as (path, rows)."""
    paths = [path for path, _ in parts]
    try:
        dataset = _load("parquet", data_files=[glob.escape(path) for path in paths], split="train")
    except InputError as error:
        for path in paths:
            _read_through(path)
        several = f" to {paths[-1]}" if len(paths) > 1 else ""
        raise InputError(f"data {paths[0]}{several}: {error}; write the rows in other types") from error
    return ArrowSource(dataset, parts)


def _read_footer(path: str) -> tuple[int, dict[str, str]]:
    """Number of rows, and columns with their types, from the file's end, which a file that was cut off lacks."""
    import pyarrow.parquet

    try:
        footer = pyarrow.parquet.read_metadata(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"data {path}: no sound Parquet file ({one_line(error)}); fetch or write it again") from None
    if not footer.num_rows:
        raise InputError(f"data {path}: holds no rows; remove the file")
    return footer.num_rows, {field.name: str(field.type) for field in footer.schema.to_arrow_schema()}


def _read_through(path: str) -> None:
    """All of the file, to find out which of several is damaged behind a sound footer."""
    import pyarrow.parquet

    try:
        for _ in pyarrow.parquet.ParquetFile(path).iter_batches():
            pass
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"data {path}: damaged Parquet file ({one_line(error)}); fetch or write it again") from None


def open_hub(spec: str) -> ArrowSource:
    """A data set of the Hub: [OWNER/]NAME[/CONFIG][:SPLIT], the split `train` unless another is given.

    It is downloaded once; code that comes with it is never run. Raises InputError for one that cannot be had.
    """
    path, _, split = spec.partition(":")
    names = path.split("/")
    if not all(names) or len(names) > 3:
        raise InputError(f"data hf:{spec}: no data set's name; give hf:OWNER/NAME, and behind it /CONFIG and :SPLIT")
    split = split or "train"
    try:
        dataset = _load("/".join(names[:2]), *names[2:], split=split)
    except InputError as error:
        raise InputError(f"data hf:{spec}: {error}; check name, config, split and network (HF_TOKEN opens gated "
                         f"data sets)") from error
    return ArrowSource(dataset, [(f"hf:{path}:{split}", len(dataset))])


def _load(*args: str, **options: Any):
    import datasets
    import huggingface_hub.utils

    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # what they log, they raise as well
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
    try:
        return datasets.load_dataset(*args, **options)
    except datasets.exceptions.DatasetGenerationError as error:  # says that, not why
        raise InputError(one_line(error.__cause__ or error)) from error
    except Exception as error:  # whatever the libraries beneath it raise, which is of a dozen kinds
        raise InputError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """What an exception says, its lines joined and cut to a length that can be read."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."
