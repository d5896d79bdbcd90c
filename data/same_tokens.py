"""Whether token ids that one tokenizer writes are the same text to another.

A critic or a reference reads the ids that the policy has written. Vocabularies of one size say nothing: the same ids
may stand for other tokens, or other merges may cut a text at other places, which the reader has never seen.
"""

import itertools
from collections.abc import Sequence

from data.tokenizer import Tokenizer

CHARACTERS = "".join(map(chr, (*range(0x20, 0x800), *range(0x800, 0xD800, 0x200), *range(0x10000, 0x110000, 0x4000))))
"""of all kinds, so that every byte of UTF-8 is among theirs"""


def difference(policy: Tokenizer, reader: Tokenizer) -> str | None:
    """What the reader takes otherwise, in words; None where every token is the same bytes to both, and every text of
    the policy's tokens the same ids. Further tokens of the reader, which the policy never writes, are no difference."""
    ours, theirs = _tokens(policy), _tokens(reader)
    for token, (one, other) in enumerate(itertools.zip_longest(ours, theirs[: len(ours)], fillvalue=b"")):
        if one and one != other:
            return f"token {token} is {_shown(one)} to the policy, and {_shown(other) if other else 'nothing'} to it"
    special = [own is None for own in policy.token_bytes()]
    plain = "".join(token.decode(errors="ignore") for token, alone in zip(ours, special) if not alone)
    texts = [*(token.decode() for token, alone in zip(ours, special) if alone), plain + CHARACTERS]
    return next(filter(None, (_encoded_otherwise(text, policy, reader) for text in texts)), None)


def _tokens(tokenizer: Tokenizer) -> list[bytes]:
    """Of special tokens, which are part of no text, their names."""
    return [tokenizer.decode([token], skip_special_tokens=False).encode() if own is None else own
            for token, own in enumerate(tokenizer.token_bytes())]


def _shown(token: bytes) -> str:
    text = token.decode(errors="replace")
    return repr(token if "\ufffd" in text else text)


def _encoded_otherwise(text: str, policy: Tokenizer, reader: Tokenizer) -> str | None:
    ours, theirs = policy.encode(text), reader.encode(text)
    for place, (one, other) in enumerate(itertools.zip_longest(ours, theirs)):
        if one != other:
            return f"where the policy writes {_named(ours[place:], policy)}, it has {_named(theirs[place:], reader)}"
    return None


def _named(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    return f"tokens {ids[:3]} ({tokenizer.decode(ids[:3], skip_special_tokens=False)!r})"
