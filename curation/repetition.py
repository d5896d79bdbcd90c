"""Text that repeats itself: a model caught in a loop, lines copied over and over."""

import re
from collections.abc import Sequence

import numpy as np

from curation.filters import dropping
from curation.stages import Stage, by_row
from curation.words import hash_ngrams, num_words, parts, words
from errors import InputError

MIN_WORDS = 20
"""of a text whose n-grams are counted: of fewer, any that comes twice is a large share"""
MIN_LOOPS, LOOPING_WORDS = 4, 16
"""a text ends in a loop where so many times the same words, and so many words in all, end it"""
TAIL = 512  # words from the end that a loop is looked for in
LETTERS = re.compile(r"([^\W\d_]{1,8}?)\1{15,}")


@by_row
def repetition(*, max_repeated: float = 0.5, ngram: int = 5) -> Stage:
    """Drops rows with a text that repeats itself: more than `max_repeated` of its n-grams of words stand in it earlier
    already; or it ends in the same words four times or more; or a word is one to eight letters sixteen times.

    Each message is looked at alone. Rae et al. 2021 (Gopher, table A1) drop web pages above 0.15 for 5-grams; answers
    with programs and tables repeat more.
    """
    if not 0 < max_repeated <= 1 or ngram < 1:
        raise InputError(f"max_repeated {max_repeated} is a share above 0 and up to 1, and ngram {ngram} is 1 or more")
    return dropping(lambda row: next(filter(None, (_problem(text, max_repeated, ngram) for text in parts(row))), None))


def _problem(text: str, max_repeated: float, ngram: int) -> str | None:
    found = words(text, operators=True)
    share, period = repeated_share(found, ngram), looping_words(found[-TAIL:])
    if period:
        return f"ends in a loop of {period} words: {' '.join(found[-period:][:20])}"
    if share > max_repeated:
        return f"{share:.0%} of its {ngram}-grams are repeated"
    letters = LETTERS.search(text)
    return f"says {letters[0][:20]}" if letters else None


def repeated_share(words: list[str], ngram: int) -> float:
    """The share of n-grams that stand earlier in the text, too; 0 of a text of few words."""
    if num_words(words) < max(MIN_WORDS, ngram):
        return 0.0
    ngrams = hash_ngrams(words, ngram)
    return 1 - len(np.unique(ngrams)) / len(ngrams)


def looping_words(words: Sequence[str]) -> int:
    """How many words the loop has that a text ends in; 0 where it ends in none.

    The text's end of length L repeats its last p words where L - p is the longest border of that end; borders of all
    ends are found in one pass (the prefix function of the words read backwards: Knuth, Morris and Pratt 1977).
    """
    backwards, border = words[::-1], [0] * len(words)
    for place in range(1, len(backwards)):
        length = border[place - 1]
        while length and backwards[place] != backwards[length]:
            length = border[length - 1]
        border[place] = length + (backwards[place] == backwards[length])
        period = place + 1 - border[place]
        if place + 1 >= max(LOOPING_WORDS, MIN_LOOPS * period):
            return period
    return 0
