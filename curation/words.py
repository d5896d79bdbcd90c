"""What texts are compared by: words, n-grams of them as 64-bit hashes, and the text without its typography."""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xxhash

from curation.stages import TEXT_COLUMNS, Row
from errors import InputError

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters: scripts that put no space between words"""
WORD = rf"[{UNSPACED}]|[^\W_{UNSPACED}]+"
OPERATORS = r"[-+*/%=<>^|&~×÷√≤≥≠±]"
"""symbols that are the meaning of a text (3 + 4, 3 * 4) and no typography"""
_WORDS = re.compile(WORD)
_WORDS_AND_OPERATORS = re.compile(f"{WORD}|{OPERATORS}")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))


def words(text: str, operators: bool = False) -> list[str]:
    """The words of a text without case, form and punctuation; a character each where the script has no spaces."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_INVISIBLE)
    return (_WORDS_AND_OPERATORS if operators else _WORDS).findall(plain)


def normalised(text: str) -> str:
    """The text without case, runs of white space and invisible characters."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().translate(_INVISIBLE).split())


def hash_ngrams(words: list[str], n: int) -> np.ndarray:
    """A 64-bit hash of each n words in a row, uint64; of all of them together where there are fewer; none of no words.

    The hash of words w_1 ... w_n is the sum of odd_i * hash(w_i) modulo 2^64.
    """
    hashes, n = np.array([_hash_word(word) for word in words], np.uint64), min(n, len(words))
    total = np.zeros(len(words) - n + 1 if n else 0, np.uint64)
    for place, odd in enumerate(odd_numbers(n)):
        total += odd * hashes[place : place + len(total)]
    return total


@functools.lru_cache(2**16)
def _hash_word(word: str) -> int:
    return xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))


@functools.lru_cache(64)
def odd_numbers(count: int) -> np.ndarray:
    """uint64 [count], the first ones of always the same sequence."""
    return np.random.default_rng(0).integers(0, 2**63, count, np.uint64) * np.uint64(2) + np.uint64(1)


def ngram_set(text: str, n: int) -> np.ndarray:
    """The distinct n-grams of words and operators, as sorted uint64 hashes."""
    return np.unique(hash_ngrams(words(text, operators=True), n))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A and B| / |A or B| of two sorted sets; 0 for two empty ones."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


def text_of_row(row: Row, columns: Sequence[str] = ()) -> str:
    """All text of a row, or that of some columns alone. Raises InputError for a row that has not got them."""
    return "\n".join(parts(row, columns))


def parts(row: Row, columns: Sequence[str] = ()) -> list[str]:
    """text_of_row by messages and strings. Raises InputError as it does."""
    missing = [name for name in columns if name not in row.record]
    if missing or not (columns or row.record.keys() & set(TEXT_COLUMNS)):
        raise InputError(f"{row.source} row {row.index}: no column {missing[0] if missing else 'with text'}, only "
                         f"{', '.join(sorted(row.record))}; rename one: --data '{{source: NAME, columns: {{text: "
                         f"THEIRS}}}}'")
    return [part for name in columns or TEXT_COLUMNS if name in row.record for part in _split(row.record[name])]


def _split(value: Any) -> list[str]:
    """The text of each message of a column; the string of one that is a string."""
    return [Row("", 0, {"messages": [message]}).text for message in value] if isinstance(value, list) else \
        [value] if isinstance(value, str) else []


def strings(value: Any) -> Iterator[str]:
    """Every string of a record, at any depth, but not the names of its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)
