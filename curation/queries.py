"""What a teacher is asked and what it answers."""

import dataclasses
import hashlib
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Query:
    """One completion of one prompt."""

    place: str
    """of the row, for messages"""
    record: dict[str, Any]
    """with `prompt` or `messages`, as the teacher sees it: a template's words are in it"""
    temperature: float
    number: int
    """below 2^32, of (seed, source, row, sample): what is drawn follows from it"""
    template: int = 0
    """which one it is in"""


class Limits(NamedTuple):
    """How a teacher answers, whichever it is."""

    max_new_tokens: int
    top_k: int
    top_p: float
    min_p: float
    stop: tuple[str, ...]
    num_likeliest: int
    """log-probabilities kept for each token"""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A teacher's completion, or why there is none."""

    text: str = ""
    thought: str = ""
    """before it, where the teacher tells the two apart (reasoning_content)"""
    finish_reason: str = ""
    """stop, length, or what the teacher says"""
    tokens: list[int] | None = None
    """ids of a local model's, its end token included"""
    logps: list[float] | None = None
    """of each token"""
    top: list[list[list[Any]]] | None = None
    """for each token [[token, log-probability], ...] of the likeliest; ids, or a remote teacher's texts"""
    usage: tuple[int, int] = (0, 0)
    """tokens of prompt and completion"""
    teacher: str = ""
    failure: str | None = None
    """one line; such an answer is never given again, and is asked for anew"""
    of_teacher: bool = False
    """of a failure: it may be that of every prompt"""
    tool_calls: list[dict[str, Any]] | None = None
    """of a remote teacher, as messages have them"""


def draw_number(*parts: Any) -> int:
    """32 bits that follow from the parts alone."""
    return int.from_bytes(hashlib.sha256("\n".join(map(str, parts)).encode(errors="backslashreplace")).digest()[:4])
