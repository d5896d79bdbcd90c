r"""In a process of its own: whether two answers are the same in mathematics, by math-verify.

Both sides are rewritten alike by `normalize` and read as LaTeX in full or not at all: what the parser refuses is only
compared as text, so that `5\foo{3}` is not 5. And math-verify rounds to six decimals, however small the numbers are;
here small numbers are compared relatively.
"""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sympy

from rewards.answers import find_answer, stated
from rewards.math_literals import (
    around_literals,
    choice,
    is_textual,
    is_words,
    literals,
    plain,
    same_letters,
    same_literals,
)
from rewards.math_prose import PROSE, is_sentence, prose_answer
from rewards.math_reader import read
from rewards.math_text import normalize, unicode_to_latex
from rewards.math_values import same_value

PARTS = {"%": sympy.Rational(1, 100), "°": sympy.pi / 180}
POINT = re.compile(r"[A-Z]\s*\([^()]+,[^()]+\)")
NUMBER = re.compile(r"\d[\d.,/]*")


def same_answer(reference: str, text: str, marked: bool) -> float:
    """1.0 where the answer is the reference's, else 0.0. `marked`: the text is the answer alone, else it is the end of
    a completion, in which the answer is looked for."""
    wanted = _normalize(reference)
    if _is_answer(wanted, text, marked):
        return 1.0
    found = prose_answer(reference) if is_sentence(reference) else None  # "so they have 3 + 39 = 42 in all"
    return float(bool(found) and _is_answer(found if "," in found else found.rpartition("=")[2], text, marked))


def _is_answer(reference: str, text: str, marked: bool) -> bool:
    if is_words(reference):
        return _same(reference, normalize(text if marked else find_answer(text, reference)))
    given = [] if marked else _literals_in_prose(text, len(literals(reference)))
    if given:
        return same_literals(literals(reference), given)
    answer = normalize(text) if marked else prose_answer(text) or ""
    return _same(reference, answer) or (marked and _is_prose(answer) and _same(reference, prose_answer(text) or ""))


def _literals_in_prose(text: str, count: int) -> list[tuple]:
    """The first dates, times or numbers in a base that "answer is" announces, else the last of the text."""
    found = stated(text)
    given = literals(unicode_to_latex(found[1]))[:count] if found else []
    return given or literals(unicode_to_latex(text))[-count:] if count else []


def _is_prose(answer: str) -> bool:
    """Whether the answer is words around one number."""
    return bool(PROSE.match(answer)) and len(NUMBER.findall(answer)) == 1 and not literals(answer)


def _same(reference: str, answer: str) -> bool:
    """Whether two normal texts have one value; `(B) 13` is `B` and is `13`."""
    if plain(reference) == plain(answer):
        return True
    wanted, chosen = choice(reference), choice(answer)
    if wanted and chosen:
        return wanted[0] == chosen[0] and _same(wanted[1], chosen[1])
    if wanted or chosen:
        return any(_same(one, other) for one in wanted or (reference,) for other in chosen or (answer,))
    if same_letters(reference, answer):
        return True
    one, other = literals(reference), literals(answer)
    if one and other or (one or other) and not (":" in reference and ":" in answer):
        return same_literals(one, other) and around_literals(reference) == around_literals(answer)
    if is_words(reference) or is_textual(reference) or is_textual(answer):
        return False
    return _same_value(reference, answer)


def _same_value(reference: str, answer: str) -> bool:
    """50% is 50 and is 0.5, but 50 is not 0.5; 45° is 45 and is a quarter of pi."""
    mark = reference[-1:] if reference.endswith(("%", "°")) else answer[-1:]
    one, other = reference.endswith(mark), answer.endswith(mark)
    if mark not in PARTS:
        return _is_same(reference, answer)
    wanted, given = reference.removesuffix(mark), answer.removesuffix(mark)
    return _is_same(wanted, given) or (
        one != other and _is_same(wanted, given, PARTS[mark] if one else 1, PARTS[mark] if other else 1))


def _is_same(reference: str, answer: str, part: sympy.Expr = 1, given_part: sympy.Expr = 1) -> bool:
    """Whether both have one value, multiplied by these parts; an ordered pair is no set, nor a list of other length."""
    if POINT.fullmatch(reference) and answer[:1] == "(" or POINT.fullmatch(answer) and reference[:1] == "(":
        reference, answer = (text[text.index("(") :] for text in (reference, answer))  # A(1, 2)
    wanted, given = ([value * factor for value in read(text) if factor == 1 or isinstance(value, sympy.Expr)]
                     if factor != 1 else read(text) for text, factor in ((reference, part), (answer, given_part)))
    braces = [text.startswith(r"\{") for text in (reference, answer)]
    for one, other in zip(wanted, given):
        lists = [getattr(value, "_unsorted_args", ()) for value in (one, other)]
        if not any(braces) and all(lists) and not _count_alike(*lists):
            return False
        if any(braces) and any(map(_is_ordered, (one, other))) and max(map(len, lists)) > 1:
            return False
    return same_value(wanted, given)


def _count_alike(one: Sequence, other: Sequence) -> bool:
    """Whether what stands several times in one list does so in the other."""
    return len(one) == len(other) and (len(set(one)) == len(one) or Counter(one) == Counter(other))


def _is_ordered(value: Any) -> bool:
    return isinstance(value, (sympy.Tuple, sympy.Interval))


_normalize = functools.lru_cache(maxsize=256)(normalize)
same_answer(r"\frac{1}{2}", "0.5", True)  # the first check takes a second more than others, outside of any bound
