"""What a stage depends on besides its rows and keys: its code, and the files that its keys name.

A stage that was done before is done again where any of it has changed. Code is the file of each function that the
stage's name or a key names (package.module:function), and what it imports from beside it: of its package, or for a
module in no package of its folder. Of other files their size and time tell; of a folder those of what lies in it.
"""

import ast
import functools
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from curation.recipe import STAGES, Step
from curation.rows import digest
from curation.words import strings
from data.sources import files_of, parse_source
from errors import InputError

FUNCTION = re.compile(r"(?<![\w.])([A-Za-z_][\w.]*+):[A-Za-z_]\w*")
INSTALLED = {"site-packages", "dist-packages"}


def state_of(step: Step, before: str) -> str:
    """A digest of what the stage and those before it depend on."""
    texts = [f"curation.{STAGES[step.name]}" if step.name in STAGES else step.name, *strings(step.keys)]
    modules = dict.fromkeys(module for text in texts for module in FUNCTION.findall(text))
    return digest(before, [_hash_code(module) for module in modules], list(_describe_files(texts)))


# ------------------------------------------------------------------------------------------------------------ files


def _describe_files(texts: Iterable[str]) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """(name, what lies there) of each file or folder that a text names, as a whole or in a reward's or run's name."""
    for name in sorted({part.strip() for text in texts for part in (text, *re.split(r"[,=():@]", text))}):
        paths = [name] if os.path.isfile(name) else _files_of_source(name)
        if os.path.isdir(name) and Path(name).name not in ("", ".."):
            paths = sorted(entry.path for entry in os.scandir(name))
        if paths:
            yield name, [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns)
                         for path in paths if os.path.exists(path)]


def _files_of_source(name: str) -> list[str]:
    try:
        return files_of(parse_source(name).source)
    except (InputError, TypeError):  # no source's name
        return []


# ------------------------------------------------------------------------------------------------------------- code


@functools.cache
def _hash_code(module: str) -> str:
    """Of the module's file and what it imports from beside it; "" of one that is not there."""
    top, own = _find_file(module.partition(".")[0]), _find_file(module)
    if top is None or own is None:
        return ""
    base = top.parent.parent if top.name == "__init__.py" else top.parent
    files = {own} if INSTALLED & set(own.parts) else _reach(own, base, top.parent)
    parts = [f"{path.relative_to(base)}\n".encode() + path.read_bytes() for path in sorted(files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _find_file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _reach(first: Path, base: Path, inside: Path) -> set[Path]:
    """The files that are imported from the first on, as far as they lie in a folder; names begin at `base`."""
    found, waiting = set(), [first]
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_relative_to(inside) and not INSTALLED & set(path.parts):
            found.add(path)
            waiting += [file for name in _imported(path, base)
                        for file in (base.joinpath(*name, "__init__.py"), base.joinpath(*name[:-1], f"{name[-1]}.py"))
                        if file.is_file()]
    return found


def _imported(path: Path, base: Path) -> Iterator[tuple[str, ...]]:
    """Names of what may be modules in a file's import statements, wherever they stand."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(base).parts[: -node.level] if node.level else ()
            module = (*package, *(node.module.split(".") if node.module else ()))
            yield from filter(None, (module, *((*module, alias.name) for alias in node.names)))
