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
    """What the reader takes otherwise, in words; None where every token is the same text to both, and every text of the
    policy's tokens the same ids. Further tokens of the reader, which the policy never writes, are no difference."""
    ours, theirs = (_texts(tokenizer, policy.vocab_size) for tokenizer in (policy, reader))
    for token, (text, other) in enumerate(zip(ours, theirs, strict=True)):
        if text and text != other:
            return f"token {token} is {text!r} to the policy, and {f'{other!r}' if other else 'nothing'} to it"
    special = {text for token, text in enumerate(ours) if text and policy.decode([token]) != policy.decode(
        [token], skip_special_tokens=False)}
    plain = "".join(text for text in ours if text not in special) + CHARACTERS
    return next(filter(None, (_encoded_otherwise(text, policy, reader) for text in (*sorted(special), plain))), None)


def _texts(tokenizer: Tokenizer, count: int) -> list[str]:
    """Of the ids below `count`, each after a letter: SentencePiece has no space where a text begins."""
    before = tokenizer.encode("a")
    start = len(tokenizer.decode(before, skip_special_tokens=False))
    return [tokenizer.decode([*before, token], skip_special_tokens=False)[start:] for token in range(count)]


def _encoded_otherwise(text: str, policy: Tokenizer, reader: Tokenizer) -> str | None:
    ours, theirs = policy.encode(text), reader.encode(text)
    for place, (one, other) in enumerate(itertools.zip_longest(ours, theirs)):
        if one != other:
            return f"where the policy writes {_named(ours[place:], policy)}, it has {_named(theirs[place:], reader)}"
    return None


def _named(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    return f"tokens {ids[:3]} ({tokenizer.decode(ids[:3], skip_special_tokens=False)!r})"
