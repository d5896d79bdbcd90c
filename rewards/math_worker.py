r"""In a process of its own: whether two answers are the same in mathematics, by math-verify.

Both sides are rewritten alike by `normalize` and read as LaTeX in full or not at all: what the parser refuses is only
compared as text, so that `5\foo{3}` is not 5. And math-verify rounds to six decimals, however small the numbers are;
here small numbers are compared relatively.
"""

import functools
import re

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from math_verify import grader, verify

from rewards.answers import find_answer, stated
from rewards.math_literals import around_literals, choice, is_textual, is_words, literals, plain, same_literals
from rewards.math_prose import PROSE, is_sentence, prose_answer
from rewards.math_text import normalize, unicode_to_latex

LATEX = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
DECIMAL = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
NUMBER = re.compile(r"\d[\d.,/]*")
TOLERANCE = sympy.Float("1.000001e-6", 30)
"""between decimals, of the larger of the two, and of 1 where both are larger: 0.333333 is 1/3, 0.33 is not"""
POINTS = (sympy.Rational(7, 5), sympy.Rational(29, 13), sympy.Rational(2, 9))
"""values for variables, at which the same expressions have the same value"""


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
    one, other = literals(reference), literals(answer)
    if one and other or (one or other) and not (":" in reference and ":" in answer):
        return same_literals(one, other) and around_literals(reference) == around_literals(answer)
    if is_words(reference) or is_textual(reference) or is_textual(answer):
        return False
    return _same_value(reference, answer)


def _same_value(reference: str, answer: str) -> bool:
    """50% is 50 and is 0.5, but 50 is not 0.5."""
    one, other = reference.endswith("%"), answer.endswith("%")
    wanted, given = _read(reference.removesuffix("%")), _read(answer.removesuffix("%"))
    if _verify(wanted, given):
        return True
    return one != other and (_verify(_hundredth(wanted), given) if one else _verify(wanted, _hundredth(given)))


def _verify(wanted: list, given: list) -> bool:
    return verify(wanted, given, allow_set_relation_comp=True, timeout_seconds=None)


def _hundredth(values: list) -> list:
    return [value / 100 for value in values if isinstance(value, sympy.Expr)]


@functools.lru_cache(maxsize=256)  # the completions of a group share their reference, and many of them their answer
def _read(text: str) -> list:
    """What the text says in LaTeX, all of it; empty where the parser refuses. A lone i is the imaginary unit."""
    if DECIMAL.fullmatch(text):
        return [sympy.Float(text) if set(text) & set(".eE") else sympy.Integer(int(text))]  # 05 is 5
    text = text.replace("%", r"\%")
    try:
        value = latex2sympy(text, is_real=not grader.should_treat_as_complex(text), normalization_config=LATEX)
    except Exception:  # noqa: BLE001 - the parser raises Exception itself, and whatever sympy raises
        return []
    names = [str(name) for name in value.free_symbols]
    return [value.subs(value.free_symbols.pop(), sympy.I) if names == ["i"] else value]


def _same_number(one, other, float_rounding: int, numeric_precision: int) -> bool:
    """In place of math-verify's comparison of what is neither a set nor a relation, which rounds to six decimals."""
    close = _all_close(one, other)
    if close is None or (close and (one.free_symbols or other.free_symbols)):
        return _by_rounding(one, other, float_rounding, numeric_precision)
    return close


def _same_expression(one, other) -> bool:
    """math-verify's simplification, which takes long, where numbers leave it open."""
    return _all_close(one, other) is not False and _by_simplifying(one, other)


def _all_close(one, other) -> bool | None:
    """Whether the values are equal, False only where they differ at every point; None for what has no value."""
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return None
    names = sorted(one.free_symbols | other.free_symbols, key=str)
    close = [_close(one.subs(_values(names, point)), other.subs(_values(names, point)))
             for point in POINTS[: 1 + 2 * bool(names)]]
    return None if None in close else any(close)


def _values(names: list, point: sympy.Rational) -> dict:
    return {name: point + sympy.Rational(position, 7) for position, name in enumerate(names)}


def _close(one, other) -> bool | None:
    """Whether two numbers are equal, decimals as far as they go; None for what is no number."""
    a, b = (_evaluate(each) for each in (one, other))
    difference, size = abs(a - b), sympy.Max(abs(a), abs(b))
    if not (difference.is_Number and size.is_Number and size.is_finite):
        return None
    decimals = one.has(sympy.Float) or other.has(sympy.Float)
    if difference > (max(TOLERANCE * min(1, size), size * 1e-14) if decimals else size * 1e-20):
        return False
    exact = [each.doit() for each in (one, other)]
    return exact[0] == exact[1] if all(each.is_Rational for each in exact) else True


def _evaluate(number):
    """Thirty digits of it; 0 where sympy finds no digit that is not noise."""
    value = number.evalf(30)
    return sympy.S.Zero if value.is_Float and value._prec == 1 else value


_by_rounding, grader.sympy_numeric_eq = grader.sympy_numeric_eq, _same_number
_by_simplifying, grader.sympy_symbolic_eq = grader.sympy_symbolic_eq, _same_expression
_normalize = functools.lru_cache(maxsize=256)(normalize)
same_answer(r"\frac{1}{2}", "0.5", True)  # the first check takes a second more than others, outside of any bound
