"""Compiled texts are kept in the user's cache folder, by all that they depend on: flags, model, objective, code,
versions and the compiler's own flags."""

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

from files import put
from planning.compiling import Compiled
from sharding.compilation_cache import default_folder, prune

ROOT = Path(__file__).resolve().parents[1]
CODE = ("batch.py", "models", "objectives", "training", "sharding", "rollouts", "cli", "scripts", "data")
"""of the project, what a program may depend on"""
FACTS = ("planning/facts.py", "planning/flops.py", "planning/program.py", "planning/compiling.py")
"""and what is said of it before it is compiled"""
PACKAGES = ("jax", "jaxlib", "flax", "optax")
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
LARGEST = 2 * 2**30
"""bytes that are kept"""


def key_of(*parts: Any) -> str:
    """Of what a compiled text depends on, code, versions and environment included."""
    around = [importlib.metadata.version(name) for name in PACKAGES], [os.environ.get(name) for name in VARIABLES]
    digest = hashlib.sha256(json.dumps((parts, around), sort_keys=True, default=str).encode())
    for name in (*CODE, *FACTS):
        path = ROOT / name
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def usual_seconds(finished: bool) -> float | None:
    """What the last of this kind took; None of the first, and where that cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return float((_folder() / f"seconds-{'finished' if finished else 'text'}").read_text())
    return None


def find(key: str, finished: bool) -> Compiled | None:
    """What was kept under this key, with machine code made if `finished`. What is damaged is told, and not there."""
    path = _path(key)
    try:
        compiled = Compiled(**json.loads(gzip.decompress(path.read_bytes())))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError, TypeError):
        print(f"warning: {path} is damaged; it is compiled anew", file=sys.stderr)
        return None
    with contextlib.suppress(OSError):  # a folder that may only be read
        path.touch()
    return compiled if not finished or compiled.optimal_seconds is not None or compiled.error else None


def keep(key: str, compiled: Compiled) -> None:
    """Puts it there; the entries that were read least recently are removed. Others may be doing the same. A folder that
    cannot be written is one warning."""
    kind = "text" if compiled.optimal_seconds is None else "finished"
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        put(_path(key), gzip.compress(json.dumps(dataclasses.asdict(compiled)).encode(), 3))
        put(_folder() / f"seconds-{kind}", f"{compiled.seconds:.1f}".encode())
        prune(_folder(), LARGEST)
    except OSError as error:
        print(f"warning: what was compiled cannot be kept in {_folder()} ({error.strerror or error}); give "
              f"XDG_CACHE_HOME a folder that can be written, or the same plan is compiled again", file=sys.stderr)


def _path(key: str) -> Path:
    return _folder() / f"{key}-cache"


def _folder() -> Path:
    return default_folder().parent / "plans"
