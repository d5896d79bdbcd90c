"""Packages that code may import in the sandbox, by list: what is installed of them and of what they need."""

import functools
import re
from collections.abc import Sequence
from importlib import metadata
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
