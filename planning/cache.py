"""Compiled texts are kept in the user's cache folder: what a program compiles to depends on the flags, the code and the
compiler's version alone."""

import dataclasses
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from planning.compiling import Compiled
from sharding.compilation_cache import default_folder, prune

ROOT = Path(__file__).resolve().parents[1]
CODE = ("batch.py", "models", "objectives", "training", "sharding", "rollouts", "cli", "scripts", "data")
"""of the project, what a program may depend on"""
FACTS = ("planning/facts.py", "planning/flops.py", "planning/program.py", "planning/compiling.py")
"""and what is said of it before it is compiled"""
LARGEST = 2 * 2**30
"""bytes that are kept"""


def key_of(*parts: Any) -> str:
    """Of what a compiled text depends on, the code included."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for name in (*CODE, *FACTS):
        path = ROOT / name
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def usual_seconds(finished: bool) -> float | None:
    """What the last of this kind took; None of the first."""
    path = _folder() / f"seconds-{'finished' if finished else 'text'}"
    return float(path.read_text()) if path.exists() else None


def find(key: str, finished: bool) -> Compiled | None:
    """What was kept under this key, with machine code made if `finished`."""
    path = _path(key)
    if not path.exists():
        return None
    values = json.loads(gzip.decompress(path.read_bytes()))
    path.touch()
    compiled = Compiled(**values)
    return compiled if not finished or compiled.optimal_seconds is not None or compiled.error else None


def keep(key: str, compiled: Compiled) -> None:
    """Puts it there; the entries that were read least recently are removed."""
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(gzip.compress(json.dumps(dataclasses.asdict(compiled)).encode(), 3))
    partial.rename(path)
    kind = "text" if compiled.optimal_seconds is None else "finished"
    (path.parent / f"seconds-{kind}").write_text(f"{compiled.seconds:.1f}")
    prune(path.parent, LARGEST)


def _path(key: str) -> Path:
    return _folder() / f"{key}-cache"


def _folder() -> Path:
    return default_folder().parent / "plans"
