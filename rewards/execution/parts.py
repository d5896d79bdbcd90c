"""What the texts of a row's tests consist of: set-up, statements, functions, unittest's classes, and pytest's style.

A text is taken apart into its statements, each a test of its own, but for definitions, imports and assignments; of a
list of texts each is one test, whatever it holds. How many verdicts there will be is known before anything runs.

Runs inside the sandbox: standard library only.
"""

import ast
import functools
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_SETUP = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
          ast.AugAssign)
_HOOKS = {"setup_module", "teardown_module", "setup_function", "teardown_function"}


class BadTests(Exception):  # noqa: N818 - a verdict on data
    """The tests cannot be run, whatever the candidate does. The message is one line."""


class Part(NamedTuple):
    """What to run, by which of the functions below, and how many verdicts it gives: 0 for set-up."""

    run: Callable[["Part", types.ModuleType], list[bool]]
    tree: ast.Module
    count: int = 1
    names: tuple[str, ...] = ()
    """of test functions, or of a class and its methods"""
    parts: tuple["Part", ...] = ()


def parts_of(setup: list[str], tests: list[str], split: bool) -> list[Part]:
    """All of them in order. Raises BadTests for what does not compile."""
    found = [Part(statements, parse(text), 0) for text in setup]
    for text in tests:
        tree = parse(text)
        pieces = list(_pieces(tree))
        styled = [piece for piece in pieces if piece.run is not statements]
        if split:
            found += pieces
        elif styled:
            found.append(Part(together, tree, 1, parts=tuple(pieces)))
        else:
            found.append(Part(statements, tree))
    return found


def parse(text: str) -> ast.Module:
    """Raises BadTests for what does not compile. Imports of neighbours (`from .solution import f`) lose their dot."""
    try:
        compile(text, "tests", "exec")  # finds more than the parser does
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise BadTests(f"they do not compile: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            node.level, node.module = 0, node.module or "solution"
    return tree


def _pieces(tree: ast.Module) -> Iterator[Part]:
    cases = _test_cases(tree)
    if _needs_pytest(tree, cases):
        names = tuple(_pytest_names(tree, cases))
        yield from (Part(statements, ast.Module([node], []), 0) for node in tree.body if not _ignored(node))
        yield Part(functools.partial(with_pytest, _pytest()), ast.Module([], []), len(names), names)
        return
    for statement in tree.body:
        if _ignored(statement):
            continue
        yield Part(statements, ast.Module([statement], []), 0 if isinstance(statement, _SETUP) else 1)
        if isinstance(statement, ast.ClassDef) and statement.name in cases:
            methods = tuple(_test_methods(statement))
            if methods:
                yield Part(functools.partial(test_case, _unittest()), ast.Module([], []), len(methods),
                           (statement.name, *methods))
        elif _is_test_function(statement):
            yield Part(function, ast.parse(statement.name), 1, (statement.name,))


def _ignored(statement: ast.stmt) -> bool:
    """A docstring, `pass`, `if __name__ == ...` and calls of a runner's main, which would pass as tests."""
    expression = isinstance(statement, ast.Expr)
    docstring = expression and isinstance(statement.value, ast.Constant)
    main = expression and ast.unparse(statement.value).startswith(("unittest.main(", "pytest.main(", "main("))
    script = isinstance(statement, ast.If) and ast.unparse(statement.test).startswith("__name__")
    return docstring or main or script or isinstance(statement, ast.Pass)


def _is_test_function(node: ast.stmt) -> bool:
    return (isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test")
            and not _skipped(node))


def _skipped(node: Any) -> bool:
    return any("skip" in ast.unparse(decorator) for decorator in node.decorator_list)


def _test_methods(node: ast.ClassDef) -> Iterator[str]:
    return (each.name for each in node.body if _is_test_function(each) and not _skipped(node))


def _test_cases(tree: ast.Module) -> set[str]:
    """The classes that derive from unittest's."""
    cases: set[str] = set()
    for node in tree.body:
        bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
        if any(base.endswith("TestCase") or base in cases for base in bases):
            cases.add(node.name)
    return cases


def _needs_pytest(tree: ast.Module, cases: set[str]) -> bool:
    """Fixtures, marks, functions that take fixtures, classes Test..., hooks."""
    for node in tree.body:
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if named and (node.name in _HOOKS or any("pytest" in ast.unparse(each) for each in node.decorator_list)):
            return True
        if isinstance(node, ast.ClassDef) and _is_test_class(node, cases):
            return True
        if _is_test_function(node) and len(node.args.args) > len(node.args.defaults):
            return True
    return False


def _is_test_class(node: ast.ClassDef, cases: set[str]) -> bool:
    return node.name.startswith("Test") and node.name not in cases and any(map(_is_test_function, node.body))


def _pytest_names(tree: ast.Module, cases: set[str]) -> Iterator[str]:
    for node in tree.body:
        if _is_test_function(node):
            yield node.name
        elif isinstance(node, ast.ClassDef) and (node.name in cases or node.name.startswith("Test")):
            yield from (f"{node.name}::{name}" for name in _test_methods(node))


def statements(part: Part, module: types.ModuleType) -> list[bool]:
    """Runs them; what they raise is the caller's."""
    exec(compile(part.tree, "tests", "exec"), module.__dict__)
    return [True]


def function(part: Part, module: types.ModuleType) -> list[bool]:
    """Calls a test function."""
    outcome = getattr(module, part.names[0])()
    if isinstance(outcome, types.CoroutineType):
        import asyncio
        asyncio.run(outcome)
    return [True]


def together(part: Part, module: types.ModuleType) -> list[bool]:
    """Parts that are one test."""
    return [all(itertools.chain.from_iterable([piece.run(piece, module) for piece in part.parts]))]


def test_case(succeeded: Callable[..., set[str]], part: Part, module: types.ModuleType) -> list[bool]:
    """Runs a unittest class."""
    name, *methods = part.names
    found = succeeded(module, name, methods)
    return [method in found for method in methods]


def _unittest() -> Callable[..., set[str]]:
    from rewards.execution.unittest_inside import succeeded  # takes a while, and few tests need it
    return succeeded


def _pytest() -> Callable[[types.ModuleType], set[str]]:
    try:
        from rewards.execution.pytest_inside import succeeded
    except ModuleNotFoundError as error:
        raise BadTests(f"they are in pytest's style, and there is no pytest: {error}") from None
    return succeeded


def with_pytest(succeeded: Callable[[types.ModuleType], set[str]], part: Part, module: types.ModuleType) -> list[bool]:
    """Runs all that pytest finds in the module."""
    found = succeeded(module)
    return [name in found for name in part.names]
