r"""Answers that are no arithmetic though a parser may read them so: dates, times, numbers in a base, choices, words.

2019-05-01 is no difference, 6:30 is not 6/30, 77_8 is not 77, and "listen" is not the product that "silent" is, too.
"""

import re

from rewards.math_text import WRAPPED

WORDS = re.compile(r"(?:[^\W\d_]{3,}|no)(?:[ '-]+[^\W\d_]+)*|[^\W\d_]", re.IGNORECASE)
"""one letter, or words; two letters are a product, but for one word"""
LABELLED = re.compile(r"(?:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:?\s*)?\(?([a-j])\)?[.):]?",
                      re.IGNORECASE)
ARTICLE = re.compile(r"(?:the|an?)\s+(?=[^\W\d_]{3})", re.IGNORECASE)
LETTERS = re.compile(r"\(?[A-J]\)?(?:(?:\s*(?:,|;|&|\band\b)\s*)+\(?[A-J]\)?)+|[A-J]{2,}")
CHOICE = re.compile(r"\(?([A-J])(?:\)|[.:](?=\s))\s*(?![+*/^=<>,)\s]|\(?[A-J][.:)])(.+)", re.DOTALL)
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
MONTH = (r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?"
         r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?")
DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
DATE = re.compile(
    r"(?<![\d.])(?P<year>\d{4})([-/.])(?P<month>\d{1,2})\2(?P<day>\d{1,2})(?!\d)"
    r"|(?<![\d.])(?P<first>\d{1,2})(?P<by>[-/.])(?P<second>\d{1,2})(?P=by)(?P<last>\d{4}|\d\d)(?!\d)"
    rf"|\b(?i:{MONTH})\s+{DAY}(?:,?\s+(\d{{4}}))?(?!\d)"
    rf"|(?<![\d.])\b{DAY}\s+(?:of\s+)?(?i:{MONTH})(?:,?\s+(\d{{4}}))?(?!\d)")
TIME = re.compile(r"(?<![\d:])(\d{1,2}):(\d\d)(?::(\d\d))?(?![\d:])\s*(?:([ap])\.?\s?m\b\.?)?|"
                  r"(?<![\d:.])(\d{1,2})\s*([ap])\.?\s?m\b\.?|\b(?:12\s*)?(noon|midnight)\b", re.IGNORECASE)
NAMED_BASES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
SUBSCRIPT = r"(?:_\s*(\d+|\{[^{}]*\})|\(?\s*(?:in )?base[- ]*(\w+)\)?)"
BASED = re.compile(r"\b0([xbo])([\dA-Fa-f]+)\b|"
                   rf"(?<![\w^\\{{.])\(?(?=[A-F]*\d|[A-F]+_\{{?16)([\dA-F]+)\)?\s*{SUBSCRIPT}")
LOWER = re.compile(r"(?<![\w\\])[\da-f]{2,}(?=\)?\s*_\s*\{?16(?!\d))")
RATIO = re.compile(r"(?<!\d)\d+\s*:\s*\d+\s*:\s*\d+")
CONGRUENCE = re.compile(r"\\(?:[bp]?mod|equiv)(?![a-z])|\bmod\b")
FIGURE = re.compile(r"\\(?:triangle|angle|odot|square|parallel|perp)\s*[A-Z]")
SENTENCE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{4,}")
COMMANDS = re.compile(r"\\(?:begin|end|operatorname)\*?\{\w+\*?\}|\\(?:text|math)\w*\s*\{[^{}]*\}|\\[A-Za-z]+")


def is_words(text: str) -> bool:
    """Whether the text means what it spells: `Paris`, `(A)`, `no`, and not `x y` or `infinity`."""
    return bool(WORDS.fullmatch(plain(text, " "))) and text != "infinity"


def plain(text: str, space: str = "") -> str:
    r"""The text without what is only written: fonts, spaces, brackets around one letter; words in small letters."""
    bare = WRAPPED.sub(r"\1", text).strip().rstrip(" .")
    labelled = LABELLED.fullmatch(bare)
    if labelled:
        return labelled[1].lower()
    bare = re.sub(r"(?<=\d)\s+(?=\d)", "_", ARTICLE.sub("", bare))
    bare = re.sub(r"\s+", space, bare)
    return bare.lower() if WORDS.fullmatch(bare) else bare


def letters(text: str) -> frozenset[str]:
    """The letters of several choices: `A, C`, `A and C` or `AC`."""
    bare = WRAPPED.sub(r" \1 ", text).strip()
    return frozenset(re.sub(r"and|[^A-J]", "", bare)) if LETTERS.fullmatch(bare) else frozenset()


def same_letters(one: str, other: str) -> bool:
    """Whether both name the same choices; of two without anything between the letters the order counts, as in words."""
    return letters(one) == letters(other) != frozenset() and not (one.isalpha() and other.isalpha())


def choice(text: str) -> tuple[str, str] | None:
    r"""The letter and the rest of `(B) 13`, None for what has no letter or nothing else."""
    found = CHOICE.fullmatch(WRAPPED.sub(r"\1", text).strip())
    return (found[1], found[2].strip()) if found else None


def literals(text: str) -> list[tuple]:
    """The dates, else the times, else the numbers in a base of the text, each as what makes two of them equal."""
    text = _bare(text)
    return next(filter(None, ([read(found) for found in kind.finditer(text)] for kind, read in KINDS.items())), [])


def _bare(text: str) -> str:
    return LOWER.sub(lambda digits: digits[0].upper(), WRAPPED.sub(r"\1", text))


def _date(found: re.Match) -> tuple:
    """Year, month and day; months by number stand before the day with strokes (4/2/2019), behind it with full stops."""
    if found["year"]:
        year, month, day = found["year"], found["month"], found["day"]
    elif found["first"]:
        year, month, day = found["last"], found["first"], found["second"]
        month, day = (day, month) if found["by"] == "." or int(month) > 12 else (month, day)
    else:
        name, day, year = (found[9], found[10], found[11]) if found[9] else (found[13], found[12], found[14])
        month = MONTHS.index(name[:3].lower()) + 1
    return "date", int(year or 0), int(month), int(day)


def _time(found: re.Match) -> tuple:
    if found[7]:
        return "time", 12, 0, 0, "p" if found[7].lower() == "noon" else "a"
    return ("time", int(found[1] or found[5]), int(found[2] or 0), int(found[3] or 0),
            (found[4] or found[6] or "").lower())


def _based(found: re.Match) -> tuple:
    if found[1]:
        return "base", found[2].upper().lstrip("0"), {"x": "16", "b": "2", "o": "8"}[found[1]]
    word, names = re.sub(r"base|\W", "", (found[4] or found[5]).lower()), NAMED_BASES.split()
    return "base", found[3].lstrip("0"), str(names.index(word) + 2) if word in names else word


KINDS = {DATE: _date, TIME: _time, BASED: _based}


def around_literals(text: str) -> str:
    """The text with its dates, times and numbers in a base left out."""
    text = _bare(text)
    for kind in KINDS:
        text = kind.sub("", text)
    return plain(text)


def same_literals(one: list[tuple], other: list[tuple]) -> bool:
    """Whether all are equal; a time without a.m. or p.m. may be either."""
    return len(one) == len(other) and all(a == b or a[0] == b[0] == "time" and _same_time(a, b)
                                          for a, b in zip(one, other))


def _same_time(one: tuple, other: tuple) -> bool:
    if "" in (one[-1], other[-1]) and one[:-1] == other[:-1]:
        return True
    return _of_day(one) == _of_day(other)


def _of_day(time: tuple) -> tuple:
    """The time on a clock of 24 hours."""
    return (time[1] % 12 + 12 * (time[-1] == "p") if time[-1] else time[1], *time[2:4])


def is_textual(text: str) -> bool:
    """Whether only the same text is the same answer: ratios of three, congruences, figures, sentences."""
    bare = COMMANDS.sub(" ", text)
    return bool(RATIO.search(text) or CONGRUENCE.search(text) or SENTENCE.search(bare)
                or FIGURE.search(text) and "=" not in text)
