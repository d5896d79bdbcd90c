"""Numbers of a record that an objective asks for, beside its tokens: one for the row, or one for each token."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from batch import Row
from data.records import Record
from errors import InputError, shown

FLOAT32 = float(np.finfo(np.float32).max)
SIDES = ("chosen", "rejected")


def with_columns(row: Row, record: Record, names: Sequence[str], absent: Sequence[str] = (), side: str = "") -> Row:
    """The row with the record's columns of these `names`, and no others: numbers, or float32 [T].

    Of a pair's answer (`side` is chosen or rejected) a column SIDE_NAME goes before NAME. Raises InputError for one
    that is missing or holds anything else, and for one that is there though it is known to be `absent`.
    """
    for name in absent:
        if _find(record, name, side) is not None:
            raise InputError(f"there is a column {name}, which the first row has not; give it to all rows or to none")
    return row._replace(extra={name: row.extra[name] if name in row.extra else
                               read_numbers(name, _find(record, name, side), record, len(row.tokens))
                               for name in names})


def _find(record: Record, name: str, side: str) -> Any:
    own = record.get(f"{side}_{name}") if side else None
    return record.get(name) if own is None else own


def has_column(record: Record, name: str) -> bool:
    """Whether a record has a column, for itself or for the answers of a pair."""
    return name in record or all(f"{side}_{name}" in record for side in SIDES)


def read_numbers(name: str, value: Any, record: Record, length: int = 0) -> Any:
    """A number as float, or `length` of them as float32 [T]. Raises InputError for anything else."""
    if value is None:
        raise InputError(f"no column {name} among {', '.join(sorted(record))}; the objective reads it")
    if _is_number(value):
        return float(value)
    if not length or not isinstance(value, list) or len(value) != length or not all(map(_is_number, value)):
        tokens = f", or hold one number for each of the {length} tokens" if length else ""
        raise InputError(f"{name} must be a number{tokens}, not {shown(value)[:60]}")
    return np.asarray(value, np.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool_) and abs(value) <= FLOAT32
