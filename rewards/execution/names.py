"""Which names in tests are the candidate's, and which belong to the imports that everybody has.

Runs inside the sandbox: standard library only.
"""

import ast
import builtins
import importlib
import importlib.util
import re
import symtable
import sys
from typing import Any

_MEMBERS = ("typing", "math", "collections", "itertools", "functools", "heapq", "bisect")
"""modules that are imported by name, and whose members are, too"""
_ALIASES = {"np": "numpy", "numpy": "numpy", "pytest": "pytest", "pd": "pandas"}
_FURTHER = {"deepcopy": "copy", "Fraction": "fractions", "Decimal": "decimal", "StringIO": "io", "BytesIO": "io",
            "datetime": "datetime", "date": "datetime", "timedelta": "datetime", "patch": "unittest.mock",
            "MagicMock": "unittest.mock", "Mock": "unittest.mock", "redirect_stdout": "contextlib",
            "TestCase": "unittest", "dataclass": "dataclasses", "Enum": "enum", "Path": "pathlib"}
_SOLUTION = re.compile(r"(?:(?:your|my|the|user|student|model|source|target)_?)?"
                       r"(?:solutions?|candidate|main|__main__|answers?|submission|program|code|app|module|implementation"
                       r"|impl|problem|task|script|solve|solver|completion|response|function|functions)(?:_?\d+)?")


def candidate_names(tree: ast.Module, tests: list[ast.AST], entry_point: str | None, defined: set[str],
                    others: bool = False) -> set[str]:
    """The names that a candidate must define: those that the tests use and neither they, nor Python, nor the usual
    imports define; where only usual names are left, these. Empty where there is none.

    Where only builtins are left, a candidate may define one anew (`sum`): the one that every test calls. `others` says
    that tests import some of the candidate's names, too.
    """
    if entry_point:
        return {entry_point}
    wanted = free_names(tree) - defined - set(dir(builtins)) - {"__file__", "__name__"}
    unusual = wanted - usual_names(wanted).keys() - _modules(tree, wanted)
    if unusual or others:
        return unusual
    return (wanted - _modules(tree, wanted)) or _builtin_called_by_all(tests)


def usual_names(names: set[str]) -> dict[str, Any]:
    """Those of the names that the usual imports define, with what they stand for."""
    found = {name: value for module in _MEMBERS for name, value in vars(importlib.import_module(module)).items()
             if name in names and not name.startswith("_")}
    for name in names - found.keys():
        if name in _ALIASES and importlib.util.find_spec(_ALIASES[name]):
            found[name] = importlib.import_module(_ALIASES[name])
        elif name in _FURTHER:
            found[name] = getattr(importlib.import_module(_FURTHER[name]), name)
        elif name in sys.stdlib_module_names and name in (*_MEMBERS, "re", "sys", "os", "io", "json", "unittest"):
            found[name] = importlib.import_module(name)
    return found


def used_modules(tree: ast.Module, names: set[str]) -> dict[str, Any]:
    """Modules of the standard library that tests use by attribute (`string.digits`) and forget to import."""
    return {name: importlib.import_module(name) for name in _modules(tree, names)}


def _modules(tree: ast.Module, names: set[str]) -> set[str]:
    nodes = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    return used & names & sys.stdlib_module_names


def solution_modules(tree: ast.Module) -> dict[str, set[str]]:
    """Modules that tests import the candidate from (`from solution import f`), with the names that they take: modules
    that nobody has, which are called like a solution or like what is taken from them."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        taken = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
        modules = [node.module or "."] if isinstance(node, ast.ImportFrom) else (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        for module in modules:
            if _is_solution(module, taken) and _is_missing(module):
                found.setdefault(module, set()).update(taken - {"*"})
    return found


def _is_solution(module: str, taken: set[str]) -> bool:
    last = module.rpartition(".")[2].lower()
    return bool(_SOLUTION.fullmatch(last)) or last.replace("_", "") in {name.lower().replace("_", "") for name in taken}


def _is_missing(module: str) -> bool:
    top = module.partition(".")[0]
    return top == "__main__" or (top not in sys.stdlib_module_names and _spec(top) is None)


def _spec(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # a module without one: ours, in its place
        return None


def _builtin_called_by_all(tests: list[ast.AST]) -> set[str]:
    calls = [[node.func for node in ast.walk(test) if isinstance(node, ast.Call)] for test in tests]
    called = [{function.id for function in functions if isinstance(function, ast.Name)} for functions in calls]
    shared = set.intersection(*called) if called else set()
    return shared if len(shared) == 1 else set()


def free_names(tree: ast.Module) -> set[str]:
    """Names that are used as global ones and that no statement at the top binds."""
    top = symtable.symtable(ast.unparse(tree), "tests", "exec")
    bound = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    return _used(top) - bound


def _used(table: symtable.SymbolTable) -> set[str]:
    top = table.get_type() == "module"
    symbols = [symbol for symbol in table.get_symbols() if top or symbol.is_global()]
    names = {symbol.get_name() for symbol in symbols if symbol.is_referenced()}
    return names.union(*map(_used, table.get_children()))
