"""Packages that can be imported in the sandbox: by code those of a list, what is installed of them and of what they
need; by verifiers all that are installed."""

import functools
import json
import os
import re
import site
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from errors import InputError


class Packages(NamedTuple):
    """Files and folders to be seen inside, and the folders to import from."""

    readable: tuple[str, ...] = ()
    path: tuple[str, ...] = ()


USUAL = ("numpy", "pytest")
"""where they are installed"""


@functools.cache
def allowed(names: tuple[str, ...] | None) -> Packages:
    """Of these distributions (as pip names them); None: of USUAL. Raises InputError for one that is not installed."""
    found: dict[str, metadata.Distribution] = {}
    for name in names if names is not None else USUAL:
        if _distribution(name) is not None:
            _collect(name, found)
        elif names is not None:
            raise InputError(f"packages: {name!r} is not installed here; install it, or leave it out of the list")
    tops = {(each.locate_file(""), top) for each in found.values() for top in _tops(each)}
    paths = sorted({str(folder) for folder, _ in tops})
    return Packages(tuple(sorted(str(folder / top) for folder, top in tops if (folder / top).exists())), tuple(paths))


@functools.cache
def import_folders() -> tuple[str, ...]:
    """Where Python imports from: what it puts on sys.path by itself (the standard library, site-packages, the user's
    own, whatever .pth files name), and of PYTHONPATH the folders that packages were installed to. Not the script's
    folder, nor what a program adds."""
    given = [folder for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
             if any(Path(folder).glob("*.dist-info"))]
    alone = [sys.executable, "-E", "-P", *([] if site.ENABLE_USER_SITE else ["-s"])]
    printed = subprocess.check_output([*alone, "-c", "import json, sys; print(); print(json.dumps(sys.path))"])
    folders = map(os.path.abspath, [*given, *json.loads(printed.splitlines()[-1])])
    return tuple(dict.fromkeys(filter(os.path.isdir, folders)))


def _collect(name: str, found: dict[str, metadata.Distribution]) -> None:
    """A distribution and what it requires, without extras; what is not installed is not required here."""
    distribution = _distribution(name)
    if distribution is None or name in found:
        return
    found[name] = distribution
    for requirement in distribution.requires or ():
        if "extra ==" not in requirement:
            _collect(re.match(r"[\w.-]+", requirement)[0].lower(), found)


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _tops(distribution: metadata.Distribution) -> set[str]:
    """The names at the top of what it installed beside its metadata."""
    tops = {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
    return {top for top in tops if top != "__pycache__" and not top.endswith(".pth")}


def as_names(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """A list, or names with spaces or + between."""
    return tuple(re.split(r"[\s+;]+", given.strip())) if isinstance(given, str) else given and tuple(given)
