"""Values between a candidate's process and its tester's: a line of JSON a message, plain builtin values only.

JSON's parser runs nothing and builds nothing but its own few types, so a hostile message is at worst an exception.
Scalars travel as themselves (nan and inf too); all else as [kind, content]. What is no plain value is left to the two
sides: `other`, given to encode and decode.

Runs inside the sandbox: standard library only.
"""

import json
from collections.abc import Callable
from typing import IO, Any

LIMIT = 4 * 2**20
"""bytes of a message"""
_SEQUENCES = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset,
                                          dict, range, object, type(None))}
"""types that are values themselves; none that could run code when it is called"""


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


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """What JSON can hold. By exact type: an instance of a subclass, which may lie about itself, is for `other`."""
    kind = type(value)
    if value is None or kind in (bool, float, str) or (kind is int and value.bit_length() < 64):
        return value
    if kind is int:
        return ["int", hex(value)]  # in decimal, long ones are refused
    if kind.__name__ in _SEQUENCES and kind is _SEQUENCES[kind.__name__]:
        return [kind.__name__, [encode(item, other) for item in value]]
    if kind is dict:
        return ["dict", [[encode(key, other), encode(item, other)] for key, item in value.items()]]
    return _encode_rare(value, kind) or other(value)


def _encode_rare(value: Any, kind: type) -> Any:
    if kind in (bytes, bytearray):
        return [kind.__name__, value.decode("latin-1")]
    if kind is complex:
        return ["complex", [value.real, value.imag]]
    if kind is range:
        return ["range", [value.start, value.stop, value.step]]
    return ["type", value.__name__] if kind is type and value in TYPES.values() else None


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
    return other(kind, content)


_RARE = {"int": lambda digits: int(digits, 16), "bytes": lambda text: text.encode("latin-1"),
         "bytearray": lambda text: bytearray(text.encode("latin-1")), "complex": lambda parts: complex(*parts),
         "range": lambda ends: range(*ends), "type": lambda name: TYPES[name]}
