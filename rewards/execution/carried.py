"""Values of the standard library, and numpy's, that travel as what they are made of and are made anew on arrival.

What arrives is of these exact types, made by them of plain values: nothing that the sender wrote takes part. A class's
own subclasses (of int, str, list, ...) are the sender's affair and travel as their base's value at most.

Runs inside the sandbox: standard library only.
"""

import array
import collections
import contextlib
import datetime
import decimal
import fractions
import functools
import io
import itertools
import pathlib
import re
import sys
import types
import uuid
from collections.abc import Callable
from typing import Any

ITERATOR_LIMIT = 10_000
"""items of an iterator that is sent; a longer one cannot be"""
_KEYS, _VALUES, _ITEMS = (type(view) for view in ({}.keys(), {}.values(), {}.items()))
_ITERATORS = (types.GeneratorType, map, filter, zip, enumerate, reversed, *(type(iter(each)) for each in (
    [], (), {}, "", set(), range(0), b"")), itertools.chain, itertools.islice, itertools.product)
_NUMPY_KINDS = "biufcSUmM"


class Unsendable(TypeError):
    """A value that cannot travel."""


def _iterated(values: Any) -> list[Any]:
    items = list(itertools.islice(values, ITERATOR_LIMIT + 1))
    if len(items) > ITERATOR_LIMIT:
        raise Unsendable("a long or endless iterator")
    return items


def _zone(zone: datetime.tzinfo | None) -> Any:
    if zone is not None and type(zone) is not datetime.timezone:
        raise Unsendable(f"a time zone of type {type(zone).__name__}")
    return zone and zone.utcoffset(None)


@functools.lru_cache(256)
def _named(name: str, fields: tuple[str, ...]) -> type:
    return collections.namedtuple(name, fields)


def _text_file(text: str, position: int) -> io.StringIO:
    file = io.StringIO()
    file.write(text)
    file.seek(position)
    return file


def _bytes_file(content: bytes, position: int) -> io.BytesIO:
    file = io.BytesIO(content)
    file.seek(position)
    return file


def _default_dict(factory: type | None, items: dict) -> collections.defaultdict:
    return collections.defaultdict(factory, items)


KINDS: dict[type, tuple[Callable[[Any], list[Any]], Callable[..., Any]]] = {
    fractions.Fraction: (lambda x: [x.numerator, x.denominator], fractions.Fraction),
    decimal.Decimal: (lambda x: [str(x)], decimal.Decimal),
    datetime.date: (lambda x: [x.isoformat()], datetime.date.fromisoformat),
    datetime.time: (lambda x: [x.replace(tzinfo=None).isoformat(), _zone(x.tzinfo), x.fold], lambda text, zone, fold:
                    datetime.time.fromisoformat(text).replace(
                        tzinfo=None if zone is None else datetime.timezone(zone), fold=fold)),
    datetime.datetime: (lambda x: [x.replace(tzinfo=None).isoformat(), _zone(x.tzinfo), x.fold], lambda text, zone,
                        fold: datetime.datetime.fromisoformat(text).replace(
                            tzinfo=None if zone is None else datetime.timezone(zone), fold=fold)),
    datetime.timedelta: (lambda x: [x.days, x.seconds, x.microseconds], datetime.timedelta),
    datetime.timezone: (lambda x: [x.utcoffset(None)], datetime.timezone),
    collections.deque: (lambda x: [list(x), x.maxlen], collections.deque),
    collections.Counter: (lambda x: [dict(x)], collections.Counter),
    collections.OrderedDict: (lambda x: [list(x.items())], collections.OrderedDict),
    collections.defaultdict: (lambda x: [x.default_factory, dict(x)], _default_dict),
    collections.ChainMap: (lambda x: [*x.maps], collections.ChainMap),
    collections.UserList: (lambda x: [x.data], collections.UserList),
    collections.UserDict: (lambda x: [x.data], collections.UserDict),
    collections.UserString: (lambda x: [x.data], collections.UserString),
    types.MappingProxyType: (lambda x: [dict(x)], types.MappingProxyType),
    types.SimpleNamespace: (lambda x: [vars(x)], lambda names: types.SimpleNamespace(**names)),
    _KEYS: (lambda x: [list(x)], lambda keys: dict.fromkeys(keys).keys()),
    _VALUES: (lambda x: [list(x)], lambda values: dict(enumerate(values)).values()),
    _ITEMS: (lambda x: [list(x)], lambda items: dict(items).items()),
    memoryview: (lambda x: [x.tobytes()], memoryview),
    array.array: (lambda x: [x.typecode, x.tolist()], array.array),
    slice: (lambda x: [x.start, x.stop, x.step], slice),
    type(...): (lambda x: [], lambda: ...),
    type(NotImplemented): (lambda x: [], lambda: NotImplemented),
    uuid.UUID: (lambda x: [x.hex], uuid.UUID),
    re.Pattern: (lambda x: [x.pattern, int(x.flags) & ~int(isinstance(x.pattern, str) and re.UNICODE)], re.compile),
    type(pathlib.Path()): (lambda x: [str(x)], pathlib.Path),
    pathlib.PurePosixPath: (lambda x: [str(x)], pathlib.PurePosixPath),
    io.StringIO: (lambda x: [x.getvalue(), x.tell()], _text_file),
    io.BytesIO: (lambda x: [x.getvalue(), x.tell()], _bytes_file),
}
"""exact type -> (what it is made of, how it is made)"""
_BY_NAME = {kind.__name__: made for kind, (_, made) in KINDS.items()} | {
    "namedtuple": lambda name, fields, items: _named(name, tuple(fields))(*items),
    "iterator": iter}


def taken_apart(value: Any, iterators: bool) -> tuple[str, list[Any]] | None:
    """(kind, what it is made of); None for what does not travel so. Iterators are used up, so only where asked."""
    kind = type(value)
    if kind in KINDS:
        return kind.__name__, KINDS[kind][0](value)
    if iterators and kind in _ITERATORS:
        return "iterator", [_iterated(value)]
    if kind.__mro__[1:] == (tuple, object) and type(getattr(kind, "_fields", None)) is tuple and not _has_methods(kind):
        return "namedtuple", [kind.__name__, list(kind._fields), [*tuple.__iter__(value)]]
    return _numpy_apart(value, kind)


def _has_methods(kind: type) -> bool:
    """Whether a named tuple's class defines more than its fields."""
    own = {name for name in vars(kind) if not name.startswith("_")} - set(kind._fields)
    return bool(own or {"__eq__", "__str__", "__lt__", "__add__", "__hash__", "__bool__"} & vars(kind).keys())


def _numpy_apart(value: Any, kind: type) -> tuple[str, list[Any]] | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or not (kind is numpy.ndarray or issubclass(kind, numpy.generic)):
        return None
    if value.dtype.kind not in _NUMPY_KINDS or value.dtype.names:
        return None
    return "ndarray", [value.dtype.str, list(value.shape), value.tobytes(), kind is not numpy.ndarray]


def _numpy_made(dtype: str, shape: list[int], content: bytes, scalar: bool) -> Any:
    import numpy
    kind = numpy.dtype(str(dtype))
    if kind.kind not in _NUMPY_KINDS:
        raise ValueError(dtype)
    made = numpy.frombuffer(content, kind).reshape([int(size) for size in shape]).copy()
    return made[()] if scalar else made


def put_together(kind: str, parts: list[Any]) -> Any:
    """What was taken apart. Raises KeyError for an unknown kind, and what its maker raises."""
    return _numpy_made(*parts) if kind == "ndarray" else _BY_NAME[kind](*parts)


def make_like(old: Any, new: Any) -> None:
    """Changes `old` in place, so that it and all in it equal `new`, which has the same type; other types stay."""
    kind = type(old)
    if kind is not type(new):
        return
    if kind in (list, collections.deque, bytearray, array.array):
        _refill(old, [_merged(a, b) for a, b in itertools.zip_longest(old, new)][: len(new)], kind)
    elif isinstance(old, dict):
        merged = {key: _merged(old.get(key), item) for key, item in new.items()}
        old.clear()
        old.update(merged)
    elif kind is set:
        old.clear()
        old.update(new)
    elif kind in (tuple, collections.UserList, collections.UserDict):
        for a, b in zip(old, new) if kind is tuple else [(old.data, new.data)]:
            make_like(a, b)
    elif kind in (io.StringIO, io.BytesIO):
        old.seek(0)
        old.truncate()
        old.write(new.getvalue())
        old.seek(new.tell())
    elif kind.__module__ == "numpy" and kind.__name__ == "ndarray" and old.shape == new.shape:
        with contextlib.suppress(ValueError):  # read-only
            old[...] = new


def _merged(old: Any, new: Any) -> Any:
    """The old object where it could be made like the new one: others may hold it."""
    if type(old) is not type(new) or isinstance(old, (str, bytes, int, float, complex, type(None))):
        return new
    make_like(old, new)
    return old if isinstance(old, (list, dict, set, bytearray, collections.deque)) else new


def _refill(old: Any, items: list[Any], kind: type) -> None:
    if kind is collections.deque:
        old.clear()
        old.extend(items)
    else:
        old[:] = items if kind is list else kind(items) if kind is bytearray else array.array(old.typecode, items)
