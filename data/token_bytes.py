"""The bytes that each token adds to a text: for log-probabilities of parts of characters, and for grammars, which speak
of bytes."""

import functools
import json
import re
from collections.abc import Callable
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""a token that stands for one byte, as SentencePiece writes it"""


def bytes_of_piece(piece: str) -> bytes:
    """Of a piece of SentencePiece: "▁" is a space."""
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def bytes_of_backend(backend: Any) -> Callable[[str], bytes]:
    """Of a token of a `tokenizers.Tokenizer`, read off its decoder: byte level, SentencePiece's, or plain text."""
    kinds = _kinds(json.loads(backend.to_str()).get("decoder") or {})
    if "ByteLevel" in kinds:
        return _bytes_of_byte_level
    if kinds & {"Metaspace", "Replace", "ByteFallback"}:
        return bytes_of_piece
    return lambda token: token.encode()


def _kinds(decoder: dict[str, Any]) -> set[str]:
    parts = decoder.get("decoders", [])
    return {decoder.get("type", "")}.union(*map(_kinds, parts))


def _bytes_of_byte_level(token: str) -> bytes:
    """A token that was added as it is may have characters that no byte is written as."""
    table = _byte_characters()
    return b"".join(bytes([table[each]]) if each in table else each.encode() for each in token)


@functools.cache
def _byte_characters() -> dict[str, int]:
    """How byte-level tokenizers write bytes (Radford et al. 2019, GPT-2): those that can be seen as they are, others
    as characters from 256 on, in order."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(unseen)}
