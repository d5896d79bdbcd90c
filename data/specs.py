"""NAME and NAME(key=literal, ...), as flags name functions, rewards and generated data: one parser for all of them."""

import ast
import functools
import importlib
import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any

from errors import InputError

OPENING, CLOSING = "([{", ")]}"
TOKENS = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|.""", re.DOTALL)  # a quoted string, or one character
UNREADABLE = (ValueError, SyntaxError, MemoryError, RecursionError)


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """("name", {"a": 1}) of "name(a=1)", values being Python literals or bare
    words, which are strings. Raises InputError for anything else."""
    try:
        return _parse(text)
    except UNREADABLE as error:
        raise InputError(f"{text!r} cannot be read ({error}); the form is NAME or NAME(key=value, ...), with values as "
                         f"Python writes numbers, strings and lists") from None


def load_function(path: str) -> Callable[..., Any]:
    """The function that `package.module:name` (or `package.module.name`) names, as --objective takes it;
    `package.module:name(key=value, ...)` binds keyword arguments, which are Python literals."""
    try:
        named, keywords = _parse(path)
        module, _, name = named.rpartition(":" if ":" in named else ".")
        function = getattr(_import(module), name)
        inspect.signature(function).bind_partial(**keywords)
    except (ImportError, AttributeError, TypeError, *UNREADABLE) as error:
        raise InputError(f"{path!r} names no function ({error}); the form is package.module:name, or "
                         f"package.module:name(key=value)") from None
    return bind(function, path, **keywords) if keywords else function


def bind(function: Callable[..., Any], flag: str, **settings: Any) -> Callable[..., Any]:
    """The function with these settings bound. Raises InputError for one that takes none of such a name."""
    try:
        inspect.signature(function).bind_partial(**settings)
    except TypeError as error:
        raise InputError(f"{flag}: {error}; it must take {', '.join(settings)}") from None
    return functools.update_wrapper(functools.partial(function, **settings), function)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        raise ImportError(f"{type(error).__name__}: {error}") from error


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    name, opening, rest = text.strip().partition("(")
    return name.strip(), _keywords(opening + rest)


def _keywords(text: str) -> dict[str, Any]:
    if not text:
        return {}
    with warnings.catch_warnings(action="ignore"):  # of '\d', a regular expression's; r'\d' is surer
        call = ast.parse(f"f{text}", mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError("arguments must be given by name")
    if not all(keyword.arg for keyword in call.keywords):
        raise ValueError("** is no argument's name")
    return {keyword.arg: ast.literal_eval(_Words().visit(keyword.value)) for keyword in call.keywords}


class _Words(ast.NodeTransformer):
    """A bare word is a string."""

    def visit_Name(self, node: ast.Name) -> ast.Constant:  # noqa: N802 - ast's name
        return ast.Constant(node.id)


def split_outside(text: str, separator: str) -> list[str]:
    """The parts between separators that stand in no brackets and no quotes. Raises InputError for brackets that do not
    close."""
    parts, depth, start = [], 0, 0
    for token in TOKENS.finditer(text):
        if token[0] in OPENING or token[0] in CLOSING:
            depth += 1 if token[0] in OPENING else -1
        elif token[0] == separator and not depth:
            parts.append(text[start : token.start()])
            start = token.end()
    if depth:
        raise InputError(f"{text!r}: brackets do not close; mend them")
    return [*parts, text[start:]]
