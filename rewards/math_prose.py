r"""The answer in prose that marks none: what "the answer is" or the last line says, the last formula or number."""

import re

from rewards.answers import STEP, TAG, TAIL, THOUGHT, stated
from rewards.math_text import normalize, unicode_to_latex

SAID = re.compile(r".*(?:\bis\b|\bare\b|\bequals\b|(?<![<>=])=(?![>=]))(.+)", re.DOTALL)
LISTED = re.compile(r"^\s*(?:[->*]|\d{1,2}[.)]|\(?[a-z]\)|#+)\s+")
LONGEST_SAID = 200
PROSE = re.compile(r"(?<![A-Za-z\\{])(?!(?:and|or)\b)[A-Za-z]{2,}(?![A-Za-z]*\})")
WORD = re.compile(r"[^\W\d_]{2,}")
SENTENCE, SHORT_SENTENCE = 6, 3
"""words that make a text a sentence, and one that has a full stop or an equation"""
HEADINGS = re.compile(rf"^[ \t]*#+{STEP.pattern}", re.IGNORECASE | re.MULTILINE)
TAGS = re.compile(rf"{TAG.pattern}|</?think(?:ing)?>|{THOUGHT.pattern}", re.IGNORECASE)

DISPLAYED = r"\$\$(?:[^$])+\$\$|\\\[(?:[^\\]|\\(?![\[\]]))+\\\]"
INLINE = r"(?<![\\$])\$(?:\\.|[^\n$\\])+\$|\\\((?:[^\\\n]|\\(?![()]))+\\\)"
FORMULA = re.compile(rf"{DISPLAYED}|{INLINE}")
JOINS = re.compile(r"\s*(?:,|,?\s*\band\b|,?\s*\bor\b)\s*")
THOUSANDS = r"\d{1,3}(?:(?:,|\{,\}|[ \u00a0\u2009\u202f])\d{3})+(?!\d)"
TUPLE = r"[(\[]\s*-?[\d./]+\s*(?:,\s*-?[\d./]+\s*)+[)\]]"
BOUND = r"(?<![A-Za-z\\])[a-z]\s*(?:[<>]=?|\\[lg]e(?![a-z]))\s*-?\d+(?:\.\d+)?"
NUMBER = re.compile(
    rf"{TUPLE}|{BOUND}|"
    r"-?\\[dt]?frac\s*\{\d+\}\s*\{\d+\}"
    rf"|(?:(?<![\w.)}}])-\s?)?(?<![A-Za-z_^{{.\d])[$€£]?(?:{THOUSANDS}|\d+|(?=\.\d))(?:\.\d+)?(?:\s?/\s?\d+)?"
    r"(?:\s*(?:%|(?:percent|dozen|hundred|thousand|million|billion|trillion)\b))?")


def prose_answer(text: str) -> str | None:
    """The answer in plain LaTeX; None where the text has neither formula nor number."""
    text = TAGS.sub("\n", HEADINGS.sub("", text[-TAIL:]))
    found = stated(text)
    return _said(text, found) or (found and _found(found[1], 0)) or _found(text, -1)


def is_sentence(text: str) -> bool:
    """Whether the text is prose, with or without formulas."""
    words = len(WORD.findall(FORMULA.sub(" ", text)))
    return words >= (SHORT_SENTENCE if "=" in text or text.rstrip().endswith(".") else SENTENCE)


def _said(text: str, found: tuple[int, str] | None) -> str | None:
    """What follows the last "answer is", or "is" or "=" in the last line, where that is mathematics alone."""
    line = LISTED.sub("", text.rstrip().rpartition("\n")[2])
    said = SAID.fullmatch(line)
    whole = line.count("=") > 1 and not PROSE.search(line)  # x = 1 or x = 2
    rest = found[1] if found and found[1] else said[1] if said and not whole and not set("$\\") & set(line) else line
    rest = rest.rstrip("}") if rest.count("}") > rest.count("{") else rest
    answer = normalize(rest) if len(rest) <= LONGEST_SAID else ""
    return answer if answer and _is_formula(answer) and rest.count("$") in (0, 2) else None


def _is_formula(answer: str) -> bool:
    """Whether a normal text has no words in it, in whatever script; ° is the one sign that stays as it is."""
    return answer.replace("°", "").isascii() and not PROSE.search(answer)


def _found(text: str, which: int) -> str | None:
    """The first (0) or last (-1) formula or number; formulas that "and" or a comma joins are one."""
    text = unicode_to_latex(text)
    formulas = [span for span in _formulas(text) if _is_formula(normalize(text[slice(*span)]))]
    numbers = [found.span() for found in NUMBER.finditer(text)
               if not any(begin <= found.start() < end for begin, end in formulas)]
    spans = sorted(formulas + numbers)
    return normalize(text[slice(*spans[which])]) if spans else None


def _formulas(text: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for begin, end in (found.span() for found in FORMULA.finditer(text)):
        joined = bool(spans and JOINS.fullmatch(text, spans[-1][1], begin))
        spans[-1:] = [(spans[-1][0], end)] if joined else [*spans[-1:], (begin, end)]
    return spans
