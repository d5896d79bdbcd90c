"""Values between a candidate's process and its tester's: a line of JSON a message, values that are built on arrival.

JSON's parser runs nothing and builds nothing but its own few types, so a hostile message is at worst an exception.
Scalars travel as themselves (nan and inf too); all else as [kind, content], the standard library's values by what they
are made of (carried.py). What is none of them is left to the two sides: `other`, given to encode and decode.

Runs inside the sandbox: standard library only.
"""

import json
from collections.abc import Callable
from typing import IO, Any

from rewards.execution.carried import KINDS, put_together, taken_apart

LIMIT = 32 * 2**20
"""bytes of a message"""
_SEQUENCES = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset,
                                          dict, range, object, type(None), *KINDS)}
"""types that are values themselves; none that could run code when it is called"""
NAMED = ("object", "name", "function")
"""kinds of what stays on one side and is named to the other"""


def send(file: IO[bytes], message: list[Any]) -> None:
    """Raises ValueError, with nothing written, for a message beyond LIMIT."""
    line = json.dumps(message).encode() + b"\n"
    if len(line) > LIMIT:
        raise ValueError(f"a value of {len(line)} bytes is longer than {LIMIT}")
    file.write(line)
    file.flush()


def receive(file: IO[bytes]) -> Any:
    """Raises EOFError at the end of the file and for a message beyond LIMIT, ValueError for one that is no JSON."""
    line = file.readline(LIMIT + 1)
    if not line.endswith(b"\n"):
        raise EOFError
    return json.loads(line)


def encode(value: Any, other: Callable[[Any], Any], iterators: bool = False) -> Any:
    """What JSON can hold. By exact type: an instance of a subclass, which may lie about itself, is for `other`.
    Iterators are `other`, too, unless they are asked for: sending one uses it up."""
    kind = type(value)
    if value is None or kind in (bool, float, str) or (kind is int and value.bit_length() < 64):
        return value
    if kind is int:
        return ["int", hex(value)]  # in decimal, long ones are refused
    if kind.__name__ in _SEQUENCES and kind is _SEQUENCES[kind.__name__]:
        return [kind.__name__, [encode(item, other, iterators) for item in value]]
    if kind is dict:
        return ["dict", [[encode(each, other, iterators) for each in pair] for pair in value.items()]]
    return _encode_rare(value, kind, other, iterators) or other(value)


def _encode_rare(value: Any, kind: type, other: Callable[[Any], Any], iterators: bool) -> Any:
    if kind in (bytes, bytearray):
        return [kind.__name__, value.decode("latin-1")]
    if kind is complex:
        return ["complex", [value.real, value.imag]]
    if kind is range:
        return ["range", [value.start, value.stop, value.step]]
    if kind is type:
        return ["type", value.__name__] if TYPES.get(value.__name__) is value else None
    apart = taken_apart(value, iterators)
    return apart and [apart[0], ["list", [encode(part, other, iterators) for part in apart[1]]]]


def decode(value: Any, other: Callable[[str, Any], Any]) -> Any:
    """The value that encode was given. Raises ValueError, TypeError and the like for what encode does not make."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decode(item, other) for item in content)
    if kind == "dict":
        return {decode(key, other): decode(item, other) for key, item in content}
    if kind in _RARE:
        return _RARE[kind](content)
    return other(kind, content) if kind in NAMED else put_together(kind, decode(content, other))


_RARE = {"int": lambda digits: int(digits, 16), "bytes": lambda text: text.encode("latin-1"),
         "bytearray": lambda text: bytearray(text.encode("latin-1")), "complex": lambda parts: complex(*parts),
         "range": lambda ends: range(*ends), "type": lambda name: TYPES[name]}
