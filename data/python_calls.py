"""Calls as Python writes them, `[get_weather(city="Bonn", days=3), now()]`, to names and arguments and back.

What a model wrote is read by the grammar below and nothing else: Python's own parser is not given it.

    calls  = "[" [call ("," call)*] "]"
    call   = name "(" [name "=" value ("," name "=" value)*] ")"
    value  = string | number | True | False | None | "[" values "]" | "(" values ")" | "{" string ":" value, ... "}"

JSON's true, false and null are values, too.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

DEEPEST = 64
"""lists and mappings inside each other"""
_TOKEN = re.compile(r"""\s*(?:(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_][\w.-]*)|(?P<mark>[\[\](){}=,:]))""",
                    re.VERBOSE)
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "\n": ""}
_NAMED = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}

Call = tuple[str, dict[str, Any]]
"""(name, arguments)"""


def read_python_calls(text: str) -> tuple[list[Call], str] | None:
    """The calls that a text begins with, and what follows them; None where it begins with none."""
    try:
        reader = _Reader(text)
        return reader.calls(), text[reader.end :]
    except ValueError:
        return None


def write_python_calls(calls: Sequence[Call]) -> str:
    """[f(a=1), g()]"""
    return f"[{', '.join(_write_call(*call) for call in calls)}]"


def _write_call(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={_write(value)}' for key, value in arguments.items())})"


def _write(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_write(key)}: {_write(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_write, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _read_string(text: str) -> str:
    """A quoted string; an escape of no meaning stays as it is, as in Python."""
    return _ESCAPE.sub(lambda found: chr(int(found[1][1:], 16)) if len(found[1]) > 1 else _ESCAPES.get(
        found[1], found[0]), text[1:-1])


def _read_number(text: str) -> int | float:
    return int(text) if text.lstrip("+-").isdigit() else float(text)


class _Reader:
    """Tokens one after the other. Raises ValueError where the text is of another form."""

    def __init__(self, text: str):
        self._text, self.end = text, 0
        self._tokens = self._split()
        self._kind, self._next = "", ""
        self._advance()

    def _split(self) -> Iterator[tuple[str, str, int]]:
        at = 0
        while found := _TOKEN.match(self._text, at):
            at = found.end()
            yield found.lastgroup or "", found[found.lastgroup or 0], at

    def _advance(self) -> None:
        self._kind, self._next, self._after = next(self._tokens, ("end", "", len(self._text)))

    def _take(self, mark: str) -> None:
        if (self._kind, self._next) != ("mark", mark):
            raise ValueError(f"{mark} was expected")
        self.end = self._after
        self._advance()

    def _name(self) -> str:
        name = self._next
        if self._kind != "name":
            raise ValueError("a name was expected")
        self._advance()
        return name

    def calls(self) -> list[Call]:
        self._take("[")
        found = self._until("]", self._call)
        if not found:
            raise ValueError("there is no call")
        return found

    def _until(self, closing: str, read: Callable[[], Any]) -> list[Any]:
        """Values with commas between them, up to a mark; what follows that one is looked at by none if it is the last.
        """
        found = []
        while (self._kind, self._next) != ("mark", closing):
            found.append(read())
            if (self._kind, self._next) != ("mark", ","):
                break
            self._take(",")
        self._take(closing)
        return found

    def _call(self) -> Call:
        name = self._name()
        self._take("(")
        return name, dict(self._until(")", self._argument))

    def _argument(self) -> tuple[str, Any]:
        name = self._name()
        self._take("=")
        return name, self._value(0)

    def _value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError("values are too deep inside each other")
        kind, text = self._kind, self._next
        if kind == "mark":
            return self._group(text, depth + 1)
        self._advance()
        if kind == "name":
            if text not in _NAMED:
                raise ValueError(f"{text} is no value")
            return _NAMED[text]
        return _read_string(text) if kind == "string" else _read_number(text)

    def _group(self, mark: str, depth: int) -> Any:
        if mark not in ("[", "(", "{"):
            raise ValueError("a value was expected")
        self._take(mark)
        if mark == "{":
            return dict(self._until("}", lambda: self._pair(depth)))
        return self._until("]" if mark == "[" else ")", lambda: self._value(depth))

    def _pair(self, depth: int) -> tuple[str, Any]:
        if self._kind != "string":
            raise ValueError("a key was expected")
        key = _read_string(self._next)
        self._advance()
        self._take(":")
        return key, self._value(depth)
