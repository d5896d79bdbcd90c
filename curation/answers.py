"""What has been answered, kept in a file by request, so that nothing is asked for twice, whenever the run was ended.

A line is {"key": digest of the request, "value": the answer}. Another model, prompt, limit, temperature or seed has
another key, so a file may serve many recipes. Only keys are held in memory; values are read where they lie.
"""

import errno
import itertools
import json
import os
from pathlib import Path
from typing import Any

from errors import InputError
from files import writing


class Answers:
    """Answers in a file, which one process writes; the end of a line that was being written is cut off."""

    def __init__(self, path: Path):
        self._path, self._places = path, {}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = path.open("ab", buffering=0)  # what a full disk refuses must not wait in a buffer
        self._reader = path.open("rb")
        end = self._read()
        with writing(path):
            self._writer.truncate(end)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Any:
        self._reader.seek(self._places[key])
        return json.loads(self._reader.readline())["value"]

    def put(self, key: str, value: Any) -> None:
        """Raises InputError where it cannot be written."""
        line = f"{json.dumps({'key': key, 'value': value})}\n".encode()
        with writing(self._path):
            start = self._writer.seek(0, os.SEEK_END)
            if self._writer.write(line) < len(line):
                self._writer.truncate(start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._places[key] = start

    def unused(self, key: str) -> str:
        """The key with a number behind it, under which nothing is kept."""
        return next(other for number in itertools.count(1) if (other := f"{key} {number}") not in self)

    def values(self) -> Any:
        """Each value that is kept."""
        return (self[key] for key in self._places)

    def _read(self) -> int:
        """Finds where each value lies; the length of all whole lines. Raises InputError for one that is no answer."""
        end = 0
        for number, line in enumerate(self._reader, 1):
            if line.endswith(b"\n"):
                self._places[_read_key(line, f"{self._path}:{number}")] = end
                end += len(line)
        return end


def _read_key(line: bytes, place: str) -> str:
    try:
        found = json.loads(line)
        return str((found["key"], found["value"])[0])
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{place}: is no answer of a teacher; remove the line, and it is asked for again") from None
