"""What a subject has said, kept in a file, so that an evaluation that was ended goes on with what it lacks.

A line is {"key": SHA-256 of weights, prompt and controls, "value": what was said}. Other weights, prompts, limits,
seeds or stops have other keys, so a file may be shared by evaluations of many tasks and models; nothing in it is ever
wrong, and it may be removed at any time.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from errors import InputError
from files import writing
from sharding.exchange import decided
from sharding.hosts import is_main
from training.checksums import checksums


class Cache:
    """What has been said, by its key; in a file, which one process writes, or nowhere. `weights` is a digest of those
    that are open."""

    def __init__(self, path: Path | None = None):
        self._path, self.weights = path, ""
        self._known: dict[str, Any] = decided(lambda: _read(path)) if path else {}

    def open(self, variables: Any, *rest: Any) -> None:
        """From now on all is said with these weights; `rest` is what else decides what they say."""
        if self._path:
            self.weights = _digest([checksums(variables), *rest])

    def get(self, key: Any) -> Any:
        """What was said; None where nothing was."""
        return self._known.get(_digest([self.weights, key])) if self._path else None

    def put(self, key: Any, value: Any) -> None:
        """Keeps it. Raises InputError where the file cannot be written."""
        if not self._path:
            return
        digest = _digest([self.weights, key])
        self._known[digest] = value
        if is_main():
            with writing(self._path), self._path.open("a", encoding="utf-8") as file:
                print(json.dumps({"key": digest, "value": value}), file=file, flush=True)


NOTHING_KEPT = Cache()


def _read(path: Path) -> dict[str, Any]:
    """The whole lines of a file, if there is one; the end of a line that was being written is cut off. Raises
    InputError for a file that is none of this kind."""
    if not path.exists():
        return {}
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); mend that, or remove it") from None
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with writing(path):
            path.write_bytes(whole)
    try:
        return {row["key"]: row["value"] for row in map(json.loads, whole.decode().split("\n")[:-1])}
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{path}: holds lines that no evaluation wrote; remove it (what it has is computed again)"
                         ) from None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
