"""A file of rows that grows as they are made, and that the same command goes on with where it was ended.

    OUTPUT                one JSON object a line
    OUTPUT.config.yaml    the command that it is of

A row is there whole, or is the last line and lacks its end, which is cut off when the command is given again.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from errors import InputError, shown
from files import lock, write_text, writing


def check_same(output: Path, command: dict[str, Any]) -> None:
    """Raises InputError where `output` holds rows that are not of this command: other values under its names."""
    if not output.exists() or not output.stat().st_size:
        return
    stored, command = _stored(output), json.loads(json.dumps(command))
    differing = next((name for name in command if stored.get(name) != command[name]), None)
    if differing:
        raise InputError(f"--output {output} holds rows of another command ({differing}: "
                         f"{shown(stored.get(differing))} there, {shown(command[differing])} now); name another file, "
                         f"or remove it")


@contextlib.contextmanager
def growing_rows(output: Path, command: dict[str, Any]) -> Iterator[tuple[int, Callable[[dict[str, Any]], None]]]:
    """(rows that are there, a function that appends one). Raises InputError as check_same, where another process
    writes the file, and where it cannot be written."""
    with _opened(output) as file:
        check_same(output, command)
        with writing(output):
            count = _cut(file)
            if not count:
                write_text(_beside(output), yaml.safe_dump(json.loads(json.dumps(command)), sort_keys=False))

        def append(row: dict[str, Any]) -> None:
            with writing(output):
                file.write(as_line(row))
                file.flush()

        yield count, append


def as_line(row: dict[str, Any]) -> bytes:
    """A row as JSON; half a surrogate pair, which UTF-8 cannot hold, by its escape."""
    return f"{json.dumps(row, ensure_ascii=False, default=str)}\n".encode(errors="backslashreplace")


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.config.yaml")


def _stored(output: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load(_beside(output).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        stored = None
    if not isinstance(stored, dict):
        raise InputError(f"--output {output} exists, and no {_beside(output).name} says of what command it is; name "
                         f"another file, or remove it")
    return stored


@contextlib.contextmanager
def _opened(output: Path) -> Iterator[BinaryIO]:
    """The file, for this process alone."""
    with contextlib.ExitStack() as stack:
        with writing(output):
            file = stack.enter_context(output.open("a+b"))
        lock(file, f"--output {output}", "file")
        yield file


def _cut(file: BinaryIO) -> int:
    """Whole lines; what stands behind the last one is cut off."""
    file.seek(0)
    count = end = 0
    for line in file:
        if line.endswith(b"\n"):
            count, end = count + 1, end + len(line)
    file.truncate(end)
    return count
