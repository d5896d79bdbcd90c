"""The data set `python_stdlib`: the Python sources of the running interpreter's standard library, for TFDS.

A corpus that every machine has: `{"path": "json/decoder.py", "text": ...}`, a row a file. It is built from the
interpreter's own files, so nothing is downloaded, and its version is Python's (3.13.0), since the files are Python's.

Left out are: site-packages and dist-packages; tests (`test`, `tests`, `idle_test`), which some systems do not ship;
what differs between machines with the same Python (the build's `_sysconfigdata*`, `config-*`, `sitecustomize.py`);
`pydoc_data`, the manual in one file of 0.7 MB, which would outweigh all else in its split; files that are empty or do
not decode.

Splits are by file: `validation` holds about 5 % of the files, chosen by a hash of the path, the same ones everywhere.
"""

import hashlib
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from errors import InputError

LEFT_OUT = ("site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data",
            "config-*", "_sysconfigdata*.py", "sitecustomize.py")
"""patterns of names of folders and files"""
VALIDATION_SHARE = 0.05


class PythonStdlib(tfds.core.GeneratorBasedBuilder):
    """The builder; `tfds.builder("python_stdlib")` finds it once this module is imported."""

    VERSION = tfds.core.Version("{}.{}.{}".format(*sys.version_info))

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"path": tfds.features.Text(), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, description="Python sources of the interpreter's standard library",
                                     features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
        del dl_manager  # nothing is downloaded
        folder = stdlib_folder()
        paths = source_paths(folder)
        if not paths:
            raise InputError(f"python_stdlib: no Python sources in {folder}; use an interpreter installed with them")
        return {split: self._generate_examples(folder, [path for path in paths if split_of(path) == split])
                for split in ("train", "validation")}

    def _generate_examples(self, folder: Path, paths: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
        for path in paths:
            text = read_source(folder / path)
            if text is not None:
                yield path, {"path": path, "text": text}


def stdlib_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def source_paths(folder: Path) -> list[str]:
    """The .py files below `folder` that are not LEFT_OUT: relative, with slashes, sorted."""
    paths = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(path.as_posix() for path in paths if not any(map(left_out, path.parts)))


def left_out(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def split_of(path: str) -> str:
    """`validation` where SHA-256(path), read as a fraction of [0, 1), is below VALIDATION_SHARE, else `train`."""
    fraction = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64
    return "validation" if fraction < VALIDATION_SHARE else "train"


def read_source(path: Path) -> str | None:
    """The text of a source file, decoded by its PEP 263 cookie, lines ended by "\\n"; None where there is none."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
    except (SyntaxError, UnicodeDecodeError):  # a cookie that names no encoding; bytes that are not in it
        return None
    return text if text.strip() else None
