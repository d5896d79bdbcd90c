"""The exceptions that end a script with one line: bad input, and a stop that was asked for."""

import functools
import inspect
import json
from typing import Any


class InputError(Exception):  # noqa: N818 - what a user sees says "error"
    """Bad input. The message is one line that says what is wrong, where, and what to do about it.

    Scripts print it as `error: ...` and exit with status 1; anything else that is raised is a bug of Temper's
    own and keeps its traceback.
    """


class CommonError(InputError):
    """Bad input that all processes of a run raise, at the same place."""


class Stopped(Exception):  # noqa: N818 - no error
    """The run was asked to stop (SIGTERM, Ctrl-C) and has saved itself. Scripts print the message and exit with
    status 0."""


def shown(value: object) -> str:
    """A setting as people write it, never as Python does: `none`, `true`, `q v`, `rank 4 alpha 8`."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return " ".join(f"{name} {shown(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list | tuple | set | frozenset):
        return " ".join(map(shown, value)) or "none"
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else str(value)


def place_of(function: Any) -> str:
    """"file:line" where a function, or what calls an object, begins, whatever was bound of it; "" of one that Python
    has not read from a file."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


def as_json(value: object) -> str:
    """A value of a JSON file or a row as it is written there: `true`, `null`, `"4"`, `["lm_head"]`."""
    return json.dumps(value, ensure_ascii=False, default=str)
