"""In place of eval() where a library hands it what a model wrote: literals, operators and sympy's own expressions.

reasoning-gym evaluates answers that look like lists, and sympy's parse_expr evaluates what it made of a text. A text
that would do anything but compute is refused before it is evaluated. What may stand in it is a list of what is known to
be harmless; the sandbox around it is for what this list got wrong.
"""

import ast
import builtins
import sys
from types import CodeType
from typing import Any

import sympy
from sympy.parsing import sympy_parser

NODES = (ast.Expression, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator,
         ast.BoolOp, ast.boolop, ast.Compare, ast.cmpop, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Call)
FUNCTIONS = (abs, min, max, sympy.sqrt, sympy.cbrt, sympy.root, sympy.real_root)
"""what may be called besides sympy's classes"""


def checked_eval(text: str, global_dict: dict[str, Any] | None = None, local_dict: dict[str, Any] | None = None) -> Any:
    """eval(text) of a literal, or of operators and calls on numbers and sympy's expressions.

    Raises ValueError for anything else, attributes and subscripts among it, and SyntaxError for what is no expression.
    """
    if isinstance(text, CodeType):
        raise ValueError("only text is evaluated here")  # noqa: TRY004 - to sympy's callers as any text it cannot read
    names = vars(builtins) | (global_dict or {}) | (local_dict or {})
    tree = ast.parse(text.strip(), mode="eval")
    for node in ast.walk(tree):
        _check(node, names)
    return eval(compile(tree, "answer", "eval"), global_dict or {}, local_dict or {})  # noqa: S307 - checked


def guard(package: str) -> None:
    """Modules of sympy's parser and of `package` that are loaded evaluate by checked_eval from now on."""
    for name, module in list(sys.modules.items()):
        if module is not None and (name == package or name.startswith(f"{package}.")):
            module.eval = checked_eval
    sympy_parser.eval = checked_eval


def _check(node: ast.AST, names: dict[str, Any]) -> None:
    if not isinstance(node, NODES):
        raise ValueError(f"no expression of mathematics: {type(node).__name__}")  # noqa: TRY004
    if isinstance(node, ast.Name) and not _is_harmless(names.get(node.id)):
        raise ValueError(f"no name of mathematics: {node.id}")
    if isinstance(node, ast.Call) and any(keyword.arg != "evaluate" for keyword in node.keywords):
        raise ValueError("no keyword of mathematics")


def _is_harmless(value: Any) -> bool:
    kind = value if isinstance(value, type) else type(value)
    return issubclass(kind, sympy.Basic) or value in FUNCTIONS
