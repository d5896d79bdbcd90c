"""What can be asked of a candidate's things: operators, attributes, and questions that take several of them.

Runs inside the sandbox: standard library only.
"""

import builtins
import copy
import math
import operator
from collections.abc import Callable
from typing import Any

from rewards.execution.wire import encode

BASES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict)
UNCHANGING = (bool, int, float, complex, str, bytes, type(None))
BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


def _operator(name: str) -> Callable[..., Any]:
    return getattr(operator, f"{name}_" if name in ("and", "or") else name)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, /, *args, **kwargs: function(*args, **kwargs),
    **{name: getattr(builtins, name) for name in (
        "getattr", "setattr", "delattr", "isinstance", "issubclass", "len", "iter", "next", "bool", "str", "repr",
        "hash", "abs", "int", "float", "complex", "round", "format", "reversed", "dir", "divmod", "bytes")},
    "copy": copy.copy, "deepcopy": copy.deepcopy,
    **{name: getattr(operator, name) for name in (
        "getitem", "setitem", "delitem", "neg", "pos", "invert", "contains", "index")},
    **{name: getattr(math, name) for name in ("floor", "ceil", "trunc")},
    **{name: _operator(name) for name in (*BINARY, *COMPARISONS)},
    **{f"r{name}": lambda a, b, name=name: _operator(name)(b, a) for name in BINARY},
    **{f"i{name}": getattr(operator, f"i{name}") for name in BINARY},
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager, kind, message: type(manager).__exit__(manager, *_error(kind, message), None)}


def _error(kind: str | None, message: str) -> tuple[type | None, BaseException | None]:
    if kind is None:
        return None, None
    error = getattr(builtins, kind, Exception)(message)
    return type(error), error


class Operations:
    """Asked of the names of a program, in the process that it runs in."""

    def __init__(self, names: dict[str, Any]):
        self.names = names
        self.loop: Any = None

    def of(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        own = getattr(self, f"do_{operation}", None)
        return (own or OPERATIONS[operation])(*args, **kwargs)

    def do_describe(self, name: str) -> Any:
        """What a name stands for: ["value", it] or [kind, names of the classes above it]."""
        if name not in self.names:
            return ["nothing", []]
        value = self.names[name]
        if isinstance(value, type):
            kind = "exception" if issubclass(value, BaseException) else "class"
            return [kind, [each.__name__ for each in value.__mro__[1:]]]
        if type(value) in (list, dict, set, bytearray):
            return ["changing", [type(value).__name__]]
        if callable(value) or not _is_plain(value):
            return ["function" if callable(value) else "object", []]
        return ["value", value]

    def do_lineup(self, operation: str, target: Any, values: list[Any]) -> list[Any]:
        """The operation with each of the values: True, False, or None where it raises."""
        return [self._verdict(operation, target, value) for value in values]

    def _verdict(self, operation: str, target: Any, value: Any) -> Any:
        try:
            found = target(*value) if operation == "call" else OPERATIONS[operation](target, value)
            return found if type(found) in UNCHANGING else None if found is NotImplemented else bool(found)
        except Exception:  # noqa: BLE001 - most likely a value that it cannot be compared with
            return None

    def do_plain(self, value: Any) -> Any:
        """A plain value's subclass as its base's value."""
        base = base_of(value)
        return base(value) if base is not None else NotImplemented

    def do_await(self, awaitable: Any) -> Any:
        import asyncio  # takes a while, and hardly any program needs it
        self.loop = self.loop or asyncio.new_event_loop()

        async def wait() -> Any:
            return await awaitable

        return self.loop.run_until_complete(wait())

    def do_anext(self, iterator: Any) -> Any:
        return self.do_await(iterator.__anext__())

    def do_aenter(self, manager: Any) -> Any:
        return self.do_await(manager.__aenter__())

    def do_aexit(self, manager: Any) -> Any:
        return self.do_await(manager.__aexit__(None, None, None))


def base_of(value: Any) -> type | None:
    return next((base for base in BASES if issubclass(type(value), base)), None)


def _is_plain(value: Any) -> bool:
    try:
        encode(value, _refuse)
    except TypeError:
        return False
    return True


def _refuse(value: Any) -> Any:
    raise TypeError
