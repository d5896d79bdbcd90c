"""Rows of JSON lines, by random access, with errors that name file and line; and what other formats call a message."""

import gzip
import json
import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError, as_json

Record = dict[str, Any]

CHAT_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")
CHATS_AS_TEXT = ("messages", "prompt")
"""columns in which a string may be JSON text of messages; what a model said is never taken for that"""
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
                  "tool": "tool"}
VERBATIM = ("tools",)
"""columns of JSON in which null is a value (a schema's default)"""
SCAN_BYTES = 1 << 24  # of the file at a time while its lines are being found


class UnreadableRow(InputError):
    """A line that is no row; `text` is what stands there."""

    def __init__(self, message: str, text: str = ""):
        super().__init__(message)
        self.text = text


class JsonlSource:
    """The rows of a .jsonl or .jsonl.gz file, one JSON object a line, blank lines passed over.

    The file is mapped into memory (a .gz one is decompressed into it), and 8 bytes a row say where each begins; a row
    is parsed when it is asked for. A pickle holds the path alone: the process that loads it opens the file again.
    Lines end at "\\n" only (str.splitlines would also break at U+2028, which JSON strings may hold).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._data = _open_bytes(self.path)
        _check_encoding(self.path, self._data)
        self._starts, self._rows_before_blanks = _find_lines(self._data)
        if not len(self._starts):
            raise InputError(f"data {self.path}: holds no rows; give a file with some")

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Record:
        return {name: value if name in VERBATIM else without_null(value)
                for name, value in self.as_written(index).items() if value is not None}

    def as_written(self, index: int) -> Record:
        """The row with its nulls: what run directories know the data by."""
        line = _line(self._data, self._starts[index])
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
            raise UnreadableRow(f"{self.place(index)}: malformed JSON ({error}); mend or remove the line",
                                line.decode(errors="backslashreplace")) from None
        if not isinstance(record, dict):
            raise UnreadableRow(f"{self.place(index)}: a JSON object was expected, not {type(record).__name__}",
                                line.decode(errors="backslashreplace"))
        return record

    def place(self, index: int) -> str:
        """`file:line` of a row, for messages."""
        row = range(len(self))[index]
        return f"{self.path}:{row + 1 + np.searchsorted(self._rows_before_blanks, row, side='right')}"

    def __reduce__(self):
        return _reopen, (self.path, len(self._data))


def _reopen(path: Path, size: int) -> JsonlSource:
    source = JsonlSource(path)
    if len(source._data) != size:
        raise InputError(f"data {path}: has changed since it was opened; start the run again, and leave the file alone")
    return source


def _open_bytes(path: Path) -> bytes | mmap.mmap:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return file.read()  # what is empty or a pipe cannot be mapped
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"data {path}: truncated or corrupt gzip ({error}); fetch or compress it again") from None
    except OSError as error:
        raise InputError(f"data {path}: cannot be read ({error.strerror}); give a .jsonl file") from None


def _check_encoding(path: Path, data: bytes | mmap.mmap) -> None:
    """Raises InputError for UTF-16 and UTF-32, which begin with a byte order mark or have zeros among their bytes."""
    encoding = json.detect_encoding(data[:4]).upper()
    if not encoding.startswith("UTF-8"):
        name = encoding.replace("-LE", "LE").replace("-BE", "BE")
        raise InputError(f"data {path}: is written in {name}, and rows are read in UTF-8; convert it: iconv -f {name} "
                         f"-t UTF-8 {path} > utf8.jsonl")


def _find_lines(data: bytes | mmap.mmap) -> tuple[np.ndarray, np.ndarray]:
    """Where each line that is not blank begins, int64 [rows]; how many such lines precede each blank one."""
    view = np.frombuffer(data, np.uint8)
    starts, blanks, count = [np.zeros(0, np.int64)], [], 0
    for begin in range(0, len(view), SCAN_BYTES):
        new = np.flatnonzero(view[begin : begin + SCAN_BYTES] == ord("\n")) + (begin + 1)
        new = np.append(0, new) if begin == 0 else new
        starts.append(new[new < len(view)])
        # a line with anything in it mostly begins with "{": only the others are looked at one by one
        doubtful = np.flatnonzero(view[starts[-1]] <= ord(" "))
        blanks += [count + int(i) for i in doubtful if not _line(data, starts[-1][i]).strip()]
        count += len(starts[-1])
    blank_lines = np.asarray(blanks, np.int64)
    return np.delete(np.concatenate(starts), blank_lines), blank_lines - np.arange(len(blanks))


def _line(data: bytes | mmap.mmap, start: int) -> bytes:
    end = data.find(b"\n", int(start))
    return data[int(start) : end if end >= 0 else len(data)]


def without_null(value: Any) -> Any:
    """The value without keys of null, at any depth: they are absent, and Arrow gives every row every key."""
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return [without_null(item) for item in value] if isinstance(value, list) else value


def as_written(source: Any, index: int) -> Record:
    """A source's row as its file has it, nulls and all, where the source can tell."""
    return source.as_written(index) if hasattr(source, "as_written") else source[index]


def normalise(record: Record) -> Record:
    """The record with its chats as messages of `role` and `content`, whichever format they were written in.

    ShareGPT's `conversations` of `from` and `value` become `messages`, and so do such turns in any other chat column.
    Messages that a conversation or a prompt holds as JSON text are parsed. Raises InputError for a speaker that is none
    of SHAREGPT_ROLES.
    """
    if "conversations" in record and "messages" not in record:
        record = {"messages" if key == "conversations" else key: value for key, value in record.items()}
    record = {key: parsed_chat(value) if key in CHATS_AS_TEXT else value for key, value in record.items()}
    return {key: _to_messages(value) if key in CHAT_COLUMNS else value for key, value in record.items()}


def parsed_chat(value: Any) -> Any:
    """JSON text of a list of messages, each with a role or a speaker, as that list; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        chat = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_chat = isinstance(chat, list) and chat and all(
        isinstance(turn, dict) and (isinstance(turn.get("role"), str) or {"from", "value"} <= turn.keys())
        for turn in chat)
    return without_null(chat) if is_chat else value


def _to_messages(value: Any) -> Any:
    """Strings, and what is no chat at all, are left to those who read them."""
    return [_to_message(i, turn) for i, turn in enumerate(value)] if isinstance(value, list) else value


def _to_message(i: int, turn: Any) -> Any:
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        return turn
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise InputError(f"message {i} is from {as_json(speaker)}, not from one of {', '.join(SHAREGPT_ROLES)}; "
                         f"rename it")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {"role": SHAREGPT_ROLES[speaker], "content": turn["value"], **rest}
