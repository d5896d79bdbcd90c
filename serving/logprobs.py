"""Log-probabilities as OpenAI's answers have them: of completions by text, of chats by token."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from serving.text import TextStream

LOWEST = -9999.0
"""what is written for a log-probability that JSON has no number for"""


class TokenLogps(NamedTuple):
    """Of some tokens, under softmax(logits)."""

    tokens: Sequence[int]
    logps: Sequence[float | None]
    """None for a token that nothing predicts"""
    likeliest: Sequence[Mapping[int, float] | None]
    """token -> log-probability, the likeliest first"""


class TokenTexts:
    """Texts and bytes of a tokenizer's tokens."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._bytes = [] if tokenizer is None else tokenizer.token_bytes()

    def text(self, token: int) -> str:
        """With special tokens as they are written; without a tokenizer, its number."""
        if self._tokenizer is None:
            return f"token_id:{token}"
        return self._tokenizer.decode([token], skip_special_tokens=False)

    def bytes(self, token: int) -> list[int]:
        own = self._bytes[token] if token < len(self._bytes) else None
        return list(self.text(token).encode() if own is None else own)


class CompletionLogprobs:
    """Of one completion, part by part."""

    def __init__(self, texts: TokenTexts, decode: Any, count: int):
        self._texts, self._count, self._stream, self._offset = texts, count, TextStream(decode), 0

    def add(self, part: TokenLogps) -> dict[str, Any]:
        """The object of a part; offsets are those of characters in the whole text, an echoed prompt's too."""
        offsets = [self._next(token) for token in part.tokens]
        top = [None if each is None else self._top(token, logp, each) for token, logp, each in zip(
            part.tokens, part.logps, part.likeliest, strict=True)]
        return {"tokens": [self._texts.text(token) for token in part.tokens],
                "token_logprobs": [None if logp is None else _number(logp) for logp in part.logps],
                "top_logprobs": top if self._count else None, "text_offset": offsets}

    def _next(self, token: int) -> int:
        offset = self._offset
        self._offset += len(self._stream.add([token]))
        return offset

    def _top(self, token: int, logp: float | None, likeliest: Mapping[int, float]) -> dict[str, float]:
        """By text, the token's own with them; of tokens with one text, the likeliest."""
        found: dict[str, float] = {}
        for each, value in [*list(likeliest.items())[: self._count], (token, logp)]:
            found.setdefault(self._texts.text(each), _number(value))
        return found


def of_chat(texts: TokenTexts, part: TokenLogps, count: int) -> list[dict[str, Any]]:
    """An entry a token."""
    def entry(token: int, logp: float) -> dict[str, Any]:
        return {"token": texts.text(token), "logprob": _number(logp), "bytes": texts.bytes(token)}

    return [entry(token, logp) | {"top_logprobs": [entry(*each) for each in [*likeliest.items()][:count]]}
            for token, logp, likeliest in zip(part.tokens, part.logps, part.likeliest, strict=True)]


def _number(logp: float) -> float:
    return max(logp, LOWEST)
