r"""Answers that are no arithmetic though a parser may read them so: dates, times, numbers in a base, choices, words.

2019-05-01 is no difference, 6:30 is not 6/30, 77_8 is not 77, and "listen" is not the product that "silent" is, too.
"""

import re

from rewards.math_text import WRAPPED

WORDS = re.compile(r"(?:[^\W\d_]{3,}|no)(?:[ '-]+[^\W\d_]+)*|[^\W\d_]", re.IGNORECASE)
"""one letter, or words; two letters are a product, but for one word"""
CHOICE = re.compile(r"\(?([A-J])(?:\)|[.:](?=\s))\s*(?![+*/^=<>,)\s])(.+)", re.DOTALL)
DATE = re.compile(r"(?<![\d.])(?:(\d{4})([-/.])(\d{1,2})\2(\d{1,2})|(\d{1,2})([-/.])(\d{1,2})\6(\d{4}|\d\d))(?!\d)")
TIME = re.compile(r"(?<![\d:])(\d{1,2}):(\d\d)(?::(\d\d))?(?![\d:])\s*(?:([ap])\.?\s?m\b\.?)?|"
                  r"(?<![\d:.])(\d{1,2})\s*([ap])\.?\s?m\b\.?", re.IGNORECASE)
NAMED_BASES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
BASED = re.compile(r"(?<![\w^\\{.])(?=[A-F]*\d)([\dA-F]+)\s*(?:_\s*(\d+|\{[^{}]*\})|\(?\s*(?:in )?base[- ]*(\w+)\)?)")
RATIO = re.compile(r"(?<!\d)\d+\s*:\s*\d+\s*:\s*\d+")
CONGRUENCE = re.compile(r"\\(?:[bp]?mod|equiv)(?![a-z])|\bmod\b")
SENTENCE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{4,}")
COMMANDS = re.compile(r"\\(?:begin|end|operatorname)\*?\{\w+\*?\}|\\(?:text|math)\w*\s*\{[^{}]*\}|\\[A-Za-z]+")


def is_words(text: str) -> bool:
    """Whether the text means what it spells: `Paris`, `(A)`, `no`, and not `x y` or `infinity`."""
    return bool(WORDS.fullmatch(plain(text, " "))) and text != "infinity"


def plain(text: str, space: str = "") -> str:
    r"""The text without what is only written: fonts, spaces, brackets around one letter; words in small letters."""
    bare = re.sub(r"\s+", space, WRAPPED.sub(r"\1", text)).strip().rstrip(" .")
    bare = bare[1:-1] if len(bare) == 3 and bare[0] == "(" and bare[2] == ")" and bare[1].isalpha() else bare
    return bare.lower() if WORDS.fullmatch(bare) else bare


def choice(text: str) -> tuple[str, str] | None:
    r"""The letter and the rest of `(B) 13`, None for what has no letter or nothing else."""
    found = CHOICE.fullmatch(WRAPPED.sub(r"\1", text).strip())
    return (found[1], found[2].strip()) if found else None


def literals(text: str) -> list[tuple]:
    """The dates, else the times, else the numbers in a base of the text, each as what makes two of them equal."""
    text = WRAPPED.sub(r"\1", text)
    return next(filter(None, ([read(found) for found in kind.finditer(text)] for kind, read in KINDS.items())), [])


def _date(found: re.Match) -> tuple:
    return "date", *(int(part) for part in found.groups() if part and part.isdigit())


def _time(found: re.Match) -> tuple:
    return ("time", int(found[1] or found[5]), int(found[2] or 0), int(found[3] or 0),
            (found[4] or found[6] or "").lower())


def _based(found: re.Match) -> tuple:
    word, names = re.sub(r"base|\W", "", (found[2] or found[3]).lower()), NAMED_BASES.split()
    return "base", found[1].lstrip("0"), str(names.index(word) + 2) if word in names else word


KINDS = {DATE: _date, TIME: _time, BASED: _based}


def around_literals(text: str) -> str:
    """The text with its dates, times and numbers in a base left out."""
    text = WRAPPED.sub(r"\1", text)
    for kind in KINDS:
        text = kind.sub("", text)
    return plain(text)


def same_literals(one: list[tuple], other: list[tuple]) -> bool:
    """Whether all are equal; a time without a.m. or p.m. may be either."""
    return len(one) == len(other) and all(
        a[:-1] == b[:-1] and (a[-1] == b[-1] or a[0] == "time" and "" in (a[-1], b[-1])) for a, b in zip(one, other))


def is_textual(text: str) -> bool:
    """Whether only the same text is the same answer: ratios of three, congruences, sentences."""
    bare = COMMANDS.sub(" ", text)
    return bool(RATIO.search(text) or CONGRUENCE.search(text) or SENTENCE.search(bare))
