"""What texts are compared by: words, n-grams of them as 64-bit hashes, and the text without its typography."""

import functools
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xxhash

from curation.stages import TEXT_COLUMNS, Row, chat_or_text
from data.messages import THOUGHTS
from errors import InputError

HAN = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""kana and Chinese characters"""
SYLLABLES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Burmese, Khmer"""
MARKS = "".join(sign for sign in map(chr, range(0x300, 0x1f000)) if unicodedata.category(sign)[0] == "M")
"""vowel signs, accents and the like, which belong to the letter before them"""
WORD = rf"[{HAN}{SYLLABLES}][{MARKS}]*|[^\W{HAN}{SYLLABLES}_](?:[^\W{HAN}{SYLLABLES}_]|[{MARKS}])*"
OPERATORS = r"[-+*/%=<>^|&~×÷√≤≥≠±]"
"""symbols that are the meaning of a text (3 + 4, 3 * 4) and no typography"""
_WORDS = re.compile(WORD)
_WORDS_AND_OPERATORS = re.compile(f"{WORD}|{OPERATORS}")
_SHARES = ((re.compile(f"[{HAN}]"), 2), (re.compile(f"[{SYLLABLES}]"), 1))
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))


def words(text: str, operators: bool = False) -> list[str]:
    """The words of a text without case, form and punctuation; where the script has no spaces between them, a letter
    each with its marks."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_INVISIBLE)
    return (_WORDS_AND_OPERATORS if operators else _WORDS).findall(plain)


@functools.lru_cache(2**16)
def _quarters(word: str) -> int:
    """How much of a word it is: a Chinese character half of one, a Thai letter a quarter, as words of these scripts
    have about so many; 4 for all of one."""
    return next((share for script, share in _SHARES if script.match(word)), 4)


def num_words(words: Sequence[str]) -> float:
    """How many words of a script with spaces they are as long as."""
    return sum(map(_quarters, words)) / 4


def normalised(text: str) -> str:
    """The text without case, runs of white space and invisible characters."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().translate(_INVISIBLE).split())


def ngram_ends(words: Sequence[str], n: int) -> np.ndarray:
    """Where each n words in a row end, int64 [M], the m-th beginning at m: by num_words, so in Chinese 2 n characters.
    Of fewer words all of them are one; of none there is none."""
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.fromiter(map(_quarters, words), np.int64, len(words)))])
    ends = np.searchsorted(sums, sums[:-1] + 4 * n)
    ends = ends[ends <= len(words)]
    return ends if len(ends) or not words else np.array([len(words)])


def hash_ngrams(words: Sequence[str], n: int) -> np.ndarray:
    """A 64-bit hash of each n words in a row (ngram_ends), uint64.

    The hash of words w_1, w_2, ... is the sum of odd_i * hash(w_i) modulo 2^64.
    """
    ends = ngram_ends(words, n)
    lengths = ends - np.arange(len(ends))
    longest = int(lengths.max(initial=0))
    hashes = np.concatenate([np.array([_hash_word(word) for word in words], np.uint64), np.zeros(longest, np.uint64)])
    total = np.zeros(len(ends), np.uint64)
    for place, odd in enumerate(odd_numbers(longest)):
        total += np.where(place < lengths, odd * hashes[place : place + len(total)], np.uint64(0))
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
    """All text of a row, or that of some columns alone, with what messages think and call, which is trained on as well.
    Raises InputError for a row that has not got them."""
    beside = (part for name in columns or TEXT_COLUMNS for part in _beside(chat_or_text(row.record, name)))
    return "\n".join([*parts(row, columns), *beside])


def _beside(value: Any) -> Iterator[str]:
    """Thoughts and calls of messages; ids of calls are nobody's words."""
    for message in value if isinstance(value, list) else ():
        given = message if isinstance(message, dict) else {}
        yield from [str(given[name]) for name in THOUGHTS if given.get(name)][:1]
        calls = given.get("tool_calls") or []
        for call in calls if isinstance(calls, list) else [calls]:
            yield json.dumps(call.get("function", call) if isinstance(call, dict) else call, ensure_ascii=False,
                             sort_keys=True, default=str)


def parts(row: Row, columns: Sequence[str] = ()) -> list[str]:
    """text_of_row by messages and strings. Raises InputError as it does."""
    missing = [name for name in columns if name not in row.record]
    if missing or not (columns or row.record.keys() & set(TEXT_COLUMNS)):
        raise InputError(f"{row.source} row {row.index}: no column {missing[0] if missing else 'with text'}, only "
                         f"{', '.join(sorted(row.record))}; rename one: --data '{{source: NAME, columns: {{text: "
                         f"THEIRS}}}}'")
    return [part for name in columns or TEXT_COLUMNS if name in row.record
            for part in _split(chat_or_text(row.record, name))]


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
