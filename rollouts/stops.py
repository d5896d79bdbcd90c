"""What ends a completion besides its length: end tokens, and strings that may lie across tokens.

Strings are looked for as tokens come, in time linear in the text: only what a new token added is decoded, with a few
tokens before it, and compared.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from errors import InputError

CONTEXT = 4
"""tokens before a new one that are decoded with it: pieces of one character, or spaces that depend on what stands
before, are decoded alike in both"""
UNREAD = 3 * CONTEXT
"""tokens that may wait for the end of a character"""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True)
class Ends:
    """What ends a completion besides its length."""

    ids: Sequence[int] = ()
    """end tokens"""
    strings: Sequence[str] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    """tokens to text; needed for strings"""


def make_ends(tokenizer: Any, strings: Sequence[str]) -> Ends:
    """The tokenizer's end tokens and stop strings; the text of a special token, which decoding leaves out, ends by its
    id. Raises InputError for an empty string."""
    if "" in strings:
        raise InputError("a stop string is empty; give at least one character, or none of them")
    ids = {string: tokenizer.encode(string) for string in strings}
    special = {string: each[0] for string, each in ids.items() if len(each) == 1 and not tokenizer.decode(each)}
    return Ends((*tokenizer.eos_ids, *special.values()), [string for string in strings if string not in special],
                tokenizer.decode)


class StopFinder:
    """Looks for an Ends' strings in one completion."""

    def __init__(self, ends: Ends):
        self._ends, self._tokens = ends, []
        self._read = 0  # tokens whose text is final
        self._tail = ""  # the end of that text, as long as the longest string
        self._longest = max(map(len, ends.strings), default=0)

    def completes(self, token: int) -> bool:
        """Whether the text with this token added has a stop string."""
        if not self._ends.strings:
            return False
        self._tokens.append(token)
        count = len(self._tokens)
        text = self._text(count)
        found = any(string in text for string in self._ends.strings)
        if not text.endswith(UNFINISHED):  # else the next token may complete the character
            self._read, self._tail = count, text[-self._longest :]
        elif count - self._read > UNREAD:  # bytes that are none, of which the last ones may yet be a character's
            self._tail = self._text(count - CONTEXT)[-self._longest :]
            self._read = count - CONTEXT
        return found

    def _text(self, count: int) -> str:
        """The tail, and what the tokens after it add up to the first `count`."""
        context = self._tokens[max(0, self._read - CONTEXT) : self._read]
        known, text = (self._ends.decode(tokens) for tokens in (context, context + self._tokens[self._read : count]))
        return self._tail + text[len(known) :]
