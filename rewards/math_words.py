r"""Words that mean numbers and sets: `twenty-five`, `one third`, `third` (which is 3rd, and not 3), `no solution`."""

import re


def _counted(words: str, start: int, step: int = 1) -> dict[str, int]:
    return {word: start + step * position for position, word in enumerate(words.split())}


UNITS = _counted("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
                 "sixteen seventeen eighteen nineteen", 0)
TENS = _counted("twenty thirty forty fifty sixty seventy eighty ninety", 20, 10)
VALUES = UNITS | TENS
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
ORDINALS = _counted("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
                    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth", 1)
PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4} | {
    name + plural: value for name, value in ORDINALS.items() if value > 2 for plural in ("", "s")}
ENDINGS = {1: "st", 2: "nd", 3: "rd"}
WRITTEN = re.compile(r"(?:\\text\s*\{)?([A-Za-z][A-Za-z -]*)\}?")

MEANT = {
    r"\emptyset": ("no solution", "no solutions", "no real solution", "no real solutions", "the empty set"),
    r"\mathbb{R}": ("all real numbers", "all reals", "the real numbers", "every real number"),
    "does not exist": ("dne", "the limit does not exist"),
}
MEANINGS = {written: meaning for meaning, spellings in MEANT.items() for spelling in spellings
            for written in (spelling, rf"\text{{{spelling}}}")}


def numeral(text: str) -> str | None:
    """The number that words say, in LaTeX; None for what is not one in words alone."""
    found = WRITTEN.fullmatch(text)
    words = found[1].lower().replace("-", " ").split() if found else []
    if words in (["half"], ["one", "half"], ["a", "half"]):
        return r"\frac{1}{2}"
    if len(words) == 1 and words[0] in ORDINALS:
        value = ORDINALS[words[0]]
        return f"{value}{ENDINGS.get(value, 'th')}"
    if len(words) > 1 and words[-1] in PARTS:
        count = 1 if words[:-1] in (["a"], ["an"]) else _count(words[:-1])
        return None if count is None else rf"\frac{{{count}}}{{{PARTS[words[-1]]}}}"
    count = _count(words)
    return None if count is None else str(count)


def _count(words: list[str]) -> int | None:
    """The whole number; None where a word is none of a number's, or cannot follow the one before."""
    total = part = 0
    for before, word in zip(["", *words], words):
        if word in SCALES and (part or before == ""):
            part = (part or 1) * SCALES[word]
            total, part = (total + part, 0) if SCALES[word] > 100 else (total, part)
        elif word in VALUES and _fits(part, VALUES[word], before):
            part += VALUES[word]
        elif not (word == "and" and before in SCALES):
            return None
    return total + part if words and words[-1] != "and" else None


def _fits(part: int, value: int, before: str) -> bool:
    """Whether a number below a hundred may follow: five after twenty, but neither ten nor after six."""
    tens = part % 100
    return (value > 0 or before == "") and (before != "" or part == 0) and (
        tens == 0 and before not in VALUES or tens >= 20 and tens % 10 == 0 and value < 10 and before in TENS)
