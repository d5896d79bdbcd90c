"""Rows of JSON lines, by random access, with errors that name file and line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errors import InputError

Record = dict[str, Any]


class JsonlSource:
    """The rows of a .jsonl file, one JSON object a line, blank lines passed over.

    Lines end at "\\n" only (str.splitlines would also break at U+2028, which JSON strings may hold).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(f"data {self.path}: cannot be read ({error.strerror}); give a .jsonl file") from None
        self._lines = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if not self._lines:
            raise InputError(f"data {self.path}: holds no rows")

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Record:
        try:
            record = json.loads(self._lines[index][1])
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
            raise InputError(f"{self.place(index)}: malformed JSON ({error}); mend or remove the line") from None
        if not isinstance(record, dict):
            raise InputError(f"{self.place(index)}: a JSON object was expected, not {type(record).__name__}")
        return record

    def place(self, index: int) -> str:
        """`file:line` of a row, for messages."""
        return f"{self.path}:{self._lines[index][0]}"
