"""Whether two normal texts are one answer: as they are written, as letters, dates, numbers in a base, or in value."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sympy

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
from rewards.math_reader import read
from rewards.math_values import same_value

PARTS = {"%": sympy.Rational(1, 100), "°": sympy.pi / 180}
POINT = re.compile(r"[A-Z]\s*\([^()]+,[^()]+\)")


def same_text(reference: str, answer: str) -> bool:
    """Whether two normal texts have one value; `(B) 13` is `B` and is `13`."""
    if plain(reference) == plain(answer) or same_letters(reference, answer):
        return True
    wanted, chosen = choice(reference), choice(answer)
    if wanted and chosen:
        return wanted[0] == chosen[0] and same_text(wanted[1], chosen[1])
    if wanted or chosen:
        return any(same_text(one, other) for one in wanted or (reference,) for other in chosen or (answer,))
    one, other = literals(reference), literals(answer)
    if one and other or (one or other) and not (":" in reference and ":" in answer):
        return same_literals(one, other) and around_literals(reference) == around_literals(answer)
    if is_words(reference) or is_textual(reference) or is_textual(answer):
        return False
    return _same_measure(*_without_label(reference, answer))


def _without_label(reference: str, answer: str) -> tuple[str, str]:
    """A(1, 2) beside (1, 2) as the latter."""
    labelled = [bool(POINT.fullmatch(text)) for text in (reference, answer)]
    bare = [text[text.index("(") :] if named else text for text, named in zip((reference, answer), labelled)]
    return (bare[0], bare[1]) if any(labelled) and any(text[:1] == "(" for text in (reference, answer)) else (
        reference, answer)


def _same_measure(reference: str, answer: str) -> bool:
    """50% is 50 and is 0.5, but 50 is not 0.5; 45° is 45 and is a quarter of pi."""
    mark = next((text[-1] for text in (reference, answer) if text[-1:] in PARTS), "")
    wanted, given = read(reference.removesuffix(mark)), read(answer.removesuffix(mark))
    if _may_be_same(reference, answer, wanted, given) and same_value(wanted, given):
        return True
    one, other = reference.endswith(mark), answer.endswith(mark)
    if one == other:
        return False
    return same_value(_times(wanted, PARTS[mark]), given) if one else same_value(wanted, _times(given, PARTS[mark]))


def _times(values: list, part: sympy.Expr) -> list:
    return [value * part for value in values if isinstance(value, sympy.Expr)]


def _may_be_same(reference: str, answer: str, wanted: list, given: list) -> bool:
    """Whether both are lists, sets or pairs of one kind and length, as far as they are such."""
    braces = any(text.startswith(r"\{") for text in (reference, answer))
    return all(_are_alike(braces, one, other) for one in wanted for other in given)


def _are_alike(braces: bool, one: Any, other: Any) -> bool:
    both, lists = (one, other), (_elements(one), _elements(other))
    if braces and any(isinstance(each, (sympy.Tuple, sympy.Interval)) for each in both):
        return max(map(len, lists)) <= 1
    if any(len(elements) > 1 for elements in lists):
        several = all(isinstance(each, (sympy.Set, sympy.Tuple, sympy.Eq)) for each in both)
        return several and (braces or not all(lists) or _count_alike(*lists))
    return True


def _elements(value: Any) -> Sequence:
    """What was written between the commas of a list."""
    return value._unsorted_args if isinstance(value, sympy.FiniteSet) and hasattr(value, "_unsorted_args") else ()


def _count_alike(one: Sequence, other: Sequence) -> bool:
    """Whether what stands several times in one list does so in the other."""
    return len(one) == len(other) and (len(set(one)) == len(one) or Counter(one) == Counter(other))
