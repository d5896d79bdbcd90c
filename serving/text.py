"""Text as tokens come: what is given out stays as it is whatever follows, and ends before the first stop string."""

from collections.abc import Callable, Sequence

from data.tool_calls import longest_beginning

CONTEXT = 4
"""tokens before new ones that are decoded with them, since spaces depend on what stands before"""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""what the first bytes of a character are decoded to"""


class TextStream:
    """Tokens of one completion to its text. What may be the beginning of a character is held back."""

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._before: list[int] = []  # the last tokens whose text is whole
        self._new: list[int] = []
        self._given = 0  # characters of the new ones' text

    def add(self, tokens: Sequence[int], last: bool = False) -> str:
        """What may be given out now; all that is left, if these tokens are the last ones."""
        self._new += tokens
        text = self._decode(self._before + self._new)[len(self._decode(self._before)) :]
        whole = text if last else text.rstrip(UNFINISHED)
        given = whole[self._given :]
        self._given = max(self._given, len(whole))
        if whole == text:
            self._before, self._new, self._given = (self._before + self._new)[-CONTEXT:], [], 0
        return given


class StopCutter:
    """A text as it comes, up to the string that is complete first. What may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held = stops, ""
        self.found = False

    def add(self, text: str, last: bool = False) -> str:
        """What may be given out now; nothing once a string was found."""
        if self.found:
            return ""
        text = self._held + text
        found = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        self.found = bool(found)
        end = min(found)[1] if found else len(text) - (0 if last else longest_beginning(text, self._stops))
        self._held = text[end:]
        return text[:end]
