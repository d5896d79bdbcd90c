r"""In a process of its own: whether two answers are the same in mathematics.

Both sides are rewritten alike by `normalize` and read as LaTeX in full or not at all: what the grammar refuses is only
compared as text, so that `5\foo{3}` is not 5.
"""

import functools
import re

from rewards.answers import find_answer, stated
from rewards.math_equality import same_text
from rewards.math_literals import is_words, literals, same_literals
from rewards.math_prose import PROSE, is_sentence, prose_answer
from rewards.math_text import normalize, unicode_to_latex

REASON = re.compile(r",?\s*\b(?:not|because|since|as|so)\b")
EXCLAIMED = re.compile(r"(?<=\d)!$")
BOUND = re.compile(r"\b(?:least|most|less|more|greater|fewer|smaller|larger|over|under|below|above|up to|not|no)\b")
"""words that make the number behind them another answer"""
NUMBER = re.compile(r"\d[\d.,/]*")


def same_answer(reference: str, text: str, marked: bool) -> float:
    """1.0 where the answer is the reference's, else 0.0. `marked`: the text is the answer alone, else it is the end of
    a completion, in which the answer is looked for."""
    if _is_answer(_normalize(reference), text, marked):
        return 1.0
    found = prose_answer(reference) if is_sentence(reference) else None  # "so they have 3 + 39 = 42 in all"
    return float(bool(found) and _is_answer(found if "," in found else found.rpartition("=")[2], text, marked))


def _is_answer(reference: str, text: str, marked: bool) -> bool:
    if is_words(reference):
        found = text if marked else find_answer(text, reference)
        return any(same_text(reference, normalize(part)) for part in (found, REASON.split(found)[0]))
    if marked:
        answer = normalize(text)
        return same_text(reference, answer) or (_is_prose(answer) and same_text(reference, prose_answer(text) or ""))
    given = _literals_in_prose(text, len(literals(reference)))
    if given:
        return same_literals(literals(reference), given)
    answer = prose_answer(text) or ""
    return any(same_text(reference, each) for each in {answer, EXCLAIMED.sub("", answer)})


def _literals_in_prose(text: str, count: int) -> list[tuple]:
    """The first dates, times or numbers in a base that "answer is" announces, else the last of the text."""
    found = stated(text)
    given = literals(unicode_to_latex(found[1]))[:count] if found else []
    return given or literals(unicode_to_latex(text))[-count:] if count else []


def _is_prose(answer: str) -> bool:
    """Whether the answer is words around one number."""
    return (bool(PROSE.match(answer)) and len(NUMBER.findall(answer)) == 1 and not literals(answer)
            and not BOUND.search(answer))


_normalize = functools.lru_cache(maxsize=256)(normalize)
same_answer(r"\frac{1}{2}", "0.5", True)  # the first check takes a second more than others, outside of any bound
