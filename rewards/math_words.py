r"""Words that mean numbers and sets: `twenty-five`, `one third`, `third` (which is 3rd, and not 3), `no solution`."""

import re


def _counted(words: str, start: int, step: int = 1) -> dict[str, int]:
    return {word: start + step * position for position, word in enumerate(words.split())}


UNITS = _counted("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
                 "sixteen seventeen eighteen nineteen", 0)
TENS = _counted("twenty thirty forty fifty sixty seventy eighty ninety", 20, 10)
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
    words = [word for word in words if word != "and"] if words[:1] != ["and"] else []
    if len(words) == 1 and words[0] in ORDINALS:
        value = ORDINALS[words[0]]
        return f"{value}{ENDINGS.get(value, 'th')}"
    if len(words) > 1 and words[-1] in PARTS:
        count = 1 if words[:-1] in (["a"], ["an"]) else _count(words[:-1])
        return None if count is None else rf"\frac{{{count}}}{{{PARTS[words[-1]]}}}"
    count = _count(words)
    return None if count is None else str(count)


def _count(words: list[str]) -> int | None:
    total = part = 0
    for word in words:
        if word in SCALES:
            part = (part or 1) * SCALES[word]
            total, part = (total + part, 0) if SCALES[word] > 100 else (total, part)
        elif word in UNITS or word in TENS:
            part += UNITS.get(word, 0) + TENS.get(word, 0)
        else:
            return None
    return total + part if words else None
