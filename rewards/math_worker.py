r"""In a process of its own: whether two answers are the same in mathematics, by math-verify.

math-verify 0.9 alone would miss (1,2) against \boxed{(1,2)}, whose reference it reads as a number without $ around
it; here both sides are read alike. And it reads words as products of letters, for which "listen" is "silent": words
are compared as words here.
"""

import functools
import re

from math_verify import parse, verify

from rewards.answers import TAIL, WRAPPED, find_answer

WORDS = re.compile(r"(?:[^\W\d_]{3,}|no)(?:[ '-]+[^\W\d_]+)*|[^\W\d_]", re.IGNORECASE)
"""one letter, or words; two letters are a product, but for one word"""
FUNCTIONS = re.compile(r"(?:sin|cos|tan|log|exp|sqrt|infinity)\b")
WITH_UNIT = re.compile(r"\\?\$?(-?\d[\d.,/]*)(?:\s+(?!dozen|hundred|thousand|[mbtr]+illion)[A-Za-z]{3,})+\.?")
SPACING = re.compile(r"\\left|\\right|\\[,;! ]|[$\s]")


def same_answer(reference: str, text: str, marked: bool) -> float:
    """1.0 where the answer is the reference's, else 0.0. `marked`: the text is the answer alone, else it is the end of
    a completion, and math-verify looks for the answer there."""
    if marked and plain(text) == plain(reference):
        return 1.0
    if is_words(reference):
        return float(plain(text if marked else find_answer(text, reference)) == plain(reference))
    answer = _parse(text) if marked else parse(text[-TAIL:], parsing_timeout=None)
    return float(verify(_parse_reference(reference), answer, timeout_seconds=None))


def is_words(text: str) -> bool:
    """Whether the text means what it spells: `Paris`, `(A)`, `no`, and not `x y` or `sin x`."""
    bare = plain(text, keep_spaces=True)
    return bool(WORDS.fullmatch(bare)) and not FUNCTIONS.match(bare)


def plain(text: str, keep_spaces: bool = False) -> str:
    r"""The text without what is only written: \text{}, spaces, $, a final full stop, brackets around one letter; words
    in small letters."""
    text = WRAPPED.sub(r"\1", text).strip().rstrip(".")
    bare = SPACING.sub(" " if keep_spaces else "", text).strip()
    bare = bare[1:-1] if len(bare) == 3 and bare[0] == "(" and bare[2] == ")" and bare[1].isalpha() else bare
    return bare.lower() if WORDS.fullmatch(bare) else bare


def _parse(text: str) -> list:
    """Both sides are read like this: as LaTeX, a number with words behind it as the number."""
    text = text.strip().strip("$").strip()
    number = WITH_UNIT.fullmatch(text)
    return parse(f"${number[1] if number else text}$", parsing_timeout=None)


_parse_reference = functools.lru_cache(maxsize=256)(_parse)  # the completions of a group share it

same_answer(r"\frac{1}{2}", "0.5", True)  # the first check takes a second more than others, outside of any bound
