"""Files and folders that are there whole or not at all, and one line where the system does not let them be written."""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from errors import InputError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failed write (full disk, no permission) into one line, an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); make room or mend the permissions, "
                         f"and give the same command again") from None


def lock(opened: Any, place: str, kind: str) -> None:
    """Keeps an open file or folder (`kind`) for this process alone until it is closed. Raises InputError, which begins
    with `place`, where another process has it."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{place} is being written by another process; wait for it, or name another {kind}") from None
    except OSError:  # a file system without locks
        pass


@contextlib.contextmanager
def only_one(output: Path) -> Iterator[None]:
    """Keeps a folder, which is made, for this process alone in a block. Raises InputError where another process has it,
    and where it cannot be made."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        folder = os.open(output, os.O_RDONLY)
    try:
        lock(folder, f"--output-dir {output}", "folder")
        yield
    finally:
        os.close(folder)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path`; the file takes that name when all is written. Raises InputError as writing.
    What is there and no file (/dev/stdout, a named pipe) is written to as it is, and a link is followed: neither is
    replaced."""
    if path.exists() and not path.is_file() and not path.is_dir():
        with writing(path):
            yield path
        return
    real = path.resolve()
    partial = real.with_name(real.name + ".partial")
    with writing(path):
        yield partial
        os.replace(partial, real)


def write_text(path: Path, text: str) -> None:
    """A file of text. Raises InputError where it cannot be written."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def put(path: Path, content: bytes) -> None:
    """A file of a cache, there whole or not at all, which several processes may be writing. Raises OSError."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        (Path(folder) / path.name).write_bytes(content)
        (Path(folder) / path.name).rename(path)


@contextlib.contextmanager
def whole_lines(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a row as a line of JSON. Raises InputError where the file cannot be written."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, beside `path`; it takes that name when all is written. An empty `path` is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=path.name, dir=path.parent, ignore_cleanup_errors=True) as scratch:
        partial = Path(scratch) / "partial"
        partial.mkdir()
        yield partial
        os.replace(partial, path)
