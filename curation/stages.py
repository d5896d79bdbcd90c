"""What a stage of curation is: a pure function from rows to rows that are kept and rows that are dropped.

    def length(*, min_tokens: int = 1, max_tokens: int = 2048) -> Stage: ...

A maker's keyword arguments are the keys of its stage in a recipe (recipe.py finds makers by name). A stage takes rows
in their order and gives each of them back in that order, as a Row or as a Drop: streaming, and the same for the same
rows. It may add to a row's `notes`, or put another record in its place; `sample` alone makes several rows of one.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data.messages import text_of
from data.records import CHATS_AS_TEXT, parsed_chat


@dataclasses.dataclass
class Row:
    """A row on its way through the stages."""

    source: str
    """as --data names it"""
    index: int
    """in the source, from 0"""
    record: dict[str, Any]
    """as it was read, or as a stage made it"""
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """what stages found: quality, rewards, teacher, ...; plain JSON"""
    sample: int = 0
    """which of the completions of the source's row it is"""

    @property
    def text(self) -> str:
        """Prompt, completion, messages and texts, a line or more each; what no stage knows is no text."""
        return "\n".join(part for name in TEXT_COLUMNS for part in _parts(chat_or_text(self.record, name)))

    @property
    def place(self) -> tuple[str, int]:
        """Which row of the data it is, or is a completion of."""
        return self.source, self.index


TEXT_COLUMNS = ("text", "messages", "conversations", "prompt", "completion", "chosen", "rejected")


def chat_or_text(record: dict[str, Any], name: str) -> Any:
    """A column of a record, None where it has none; messages where it holds them as JSON text, as data/ reads them."""
    value = record.get(name)
    return parsed_chat(value) if name in (*CHATS_AS_TEXT, "conversations") else value


@dataclasses.dataclass
class Drop:
    """A row that goes no further."""

    row: Row
    reason: str
    """one line"""
    kept_instead: tuple[str, int] | tuple[str, int, int] | None = None
    """(source, index) of the row that is kept in its place, where there is one; its sample, too, if that is not 0"""


Stage = Callable[[Iterable[Row]], Iterator[Row | Drop]]


def by_row(maker: Callable[..., Stage]) -> Callable[..., Stage]:
    """Marks a maker of stages that decide on each row alone: any number of processes may share its rows."""
    maker.by_row = True
    return maker


def makes_rows(maker: Callable[..., Stage]) -> Callable[..., Stage]:
    """Marks a maker of stages that give several rows for one."""
    maker.makes_rows = True
    return maker


def _parts(value: Any) -> list[str]:
    """The text of a column: a string, or messages; anything else has none."""
    if isinstance(value, str):
        return [value]
    messages = value if isinstance(value, list) else []
    return [_content(message) for message in messages if isinstance(message, dict)]


def _content(message: dict[str, Any]) -> str:
    content = message.get("content", message.get("value", ""))  # the latter is ShareGPT's
    try:
        return text_of(content)
    except (KeyError, TypeError):  # a malformed chat, which is a stage's to find
        return str(content)
