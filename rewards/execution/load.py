"""How a program's definitions come to life: statement by statement, since what is judged are the functions.

A statement at the top that wants to end the process keeps nobody from the definitions below it; in a program that reads
standard input, where nothing is when a function is judged, neither does one that raises.

Runs inside the sandbox: standard library only.
"""

import __future__

import ast
import builtins
import contextlib
import functools
import importlib.util
import re
import sys
import warnings
from typing import Any

MODULE = "candidate"
READS_INPUT = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0|\bfileinput\b")


def load(program: str, stub: str = "") -> dict[str, Any]:
    """The names that a program defines, after those of a stub, which may be prose and is left out then."""
    warnings.simplefilter("ignore")
    module = sys.modules[MODULE] = type(sys)(MODULE)
    for text in (stub, program):
        with contextlib.suppress(Exception):  # what was defined until then is there
            _run(text, module.__dict__)
    return module.__dict__


def prepare(program: str) -> None:
    """What is changed in the library for a program, before it runs."""
    builtins.exit = builtins.quit = sys.exit  # which the module `site` would make
    if sys.version_info >= (3, 12) and "setrecursionlimit" in program:
        functools._lru_cache_wrapper = _cache_without_recursion_in_c()


UNREADABLE = (SyntaxError, ValueError, MemoryError, RecursionError)
"""what the parser raises for a text that is no Python"""


def parsed(text: str) -> ast.Module | None:
    """None for what is no Python."""
    with warnings.catch_warnings(action="ignore"):  # of '\d'
        try:
            return ast.parse(text)
        except UNREADABLE:
            return None


def _run(text: str, namespace: dict[str, Any]) -> None:
    tree = parsed(text)
    if tree is None:
        return
    statements = tree.body
    flags = _future_flags(statements)
    forgiven = (Exception, SystemExit) if READS_INPUT.search(text) else SystemExit
    for statement in statements:
        with contextlib.suppress(forgiven):
            late = 0 if _are_known(_annotations(statement), namespace) else __future__.annotations.compiler_flag
            exec(compile(ast.Module([statement], []), "program", "exec", flags | late, True), namespace)


def _annotations(statement: ast.stmt) -> list[ast.AST]:
    return [each for node in ast.walk(statement) for name in ("annotation", "returns")
            if isinstance(each := getattr(node, name, None), ast.AST)]


def _are_known(annotations: list[ast.AST], namespace: dict[str, Any]) -> bool:
    """Whether their names are there: what a program says of types keeps it from nothing, as from Python 3.14 on."""
    names = {node.id for each in annotations for node in ast.walk(each) if isinstance(node, ast.Name)}
    return all(name in namespace or hasattr(builtins, name) for name in names)


def _future_flags(statements: list[ast.stmt]) -> int:
    names = [alias.name for node in statements if isinstance(node, ast.ImportFrom) and node.module == "__future__"
             for alias in node.names]
    flags = 0
    for name in names:
        flags |= getattr(getattr(__future__, name, None), "compiler_flag", 0)
    return flags


def _cache_without_recursion_in_c() -> Any:
    """functools' own lru_cache in Python: the one in C cannot recurse as deep as setrecursionlimit allows."""
    spec = importlib.util.find_spec("functools")
    module = importlib.util.module_from_spec(spec)
    kept = sys.modules.get("_functools")
    sys.modules["_functools"] = None
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules["_functools"] = kept
    return module._lru_cache_wrapper
