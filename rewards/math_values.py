"""Whether two of sympy's objects are the same answer, by math-verify with rules of ours before its own.

math-verify rounds to six decimals, however small the numbers are; here numbers are compared relatively. It simplifies
differences and solves equations, which may take for ever; here expressions are the same if they have the same values at
a few points, and relations if their sides' differences are multiples of each other there.
"""

from typing import Any

import sympy
from math_verify import grader, verify
from sympy.core.relational import Relational

TOLERANCE = sympy.Float("1.000001e-6", 30)
"""between decimals, of the larger of the two, and of 1 where both are larger: 0.333333 is 1/3, 0.33 is not"""
EXACT = sympy.Float("1e-20", 30)
"""between numbers without decimals, of the larger"""
POINTS = [sympy.Rational(*each) for each in ((7, 5), (29, 13), (2, 9), (-3, 11), (-31, 17))]
WHOLE = [sympy.Integer(each) for each in (3, 4, 6)]
"""values for variables, at which the same expressions have the same value; whole ones where that makes a difference"""
STEPS = (sympy.floor, sympy.ceiling, sympy.Mod)
ENOUGH = 2
"""points at which both have a value"""
LONGEST_SOLVED, HIGHEST_SOLVED = 25, 6
"""operations and degree of an inequality that is solved"""
PAIR = 2
"""elements of a set that may be meant where the other answer is (1, 2)"""


def same_value(wanted: list, given: list) -> bool:
    """Whether one of the answers wanted is one of those given. Tuples are vectors, inequalities are sets."""
    return any(_verify(*_alike(one, other)) for one in wanted for other in given)


def _verify(one: Any, other: Any) -> bool:
    """math-verify's verdict, which solves inequalities that are compared with sets."""
    slow = any(_is_relation(each) and not _is_inequality(each) for each in (one, other))
    if slow and any(isinstance(each, sympy.Set) for each in (one, other)):
        return False
    return verify(one, other, allow_set_relation_comp=True, timeout_seconds=None)


def _alike(one: Any, other: Any) -> tuple[Any, Any]:
    """Both as what they can be compared as: of a column and a tuple two tuples, of two inequalities two sets."""
    one, other = _evaluated(one), _evaluated(other)
    if any(isinstance(each, (sympy.Tuple, sympy.Interval)) for each in (one, other)):
        return _as_tuple(one), _as_tuple(other)
    if all(isinstance(each, sympy.Eq) and each.lhs.is_Symbol for each in (one, other)) and one.lhs == other.lhs:
        return one.rhs, other.rhs
    if any(isinstance(each, sympy.Union) for each in (one, other)):
        return _as_union(one), _as_union(other)
    if _is_inequality(one) and _is_inequality(other) and one.free_symbols == other.free_symbols:
        return _as_set(one), _as_set(other)
    return one, other


def _evaluated(value: Any) -> Any:
    """Of sets that are joined or cut, what comes out."""
    joined = isinstance(value, (sympy.Union, sympy.Intersection, sympy.Complement)) and not value.free_symbols
    return value.doit() if joined else value


def _as_tuple(value: Any) -> Any:
    return sympy.Tuple(*value) if isinstance(value, sympy.MatrixBase) and value.cols == 1 else value


def _is_inequality(value: Any) -> bool:
    """Whether the value is one in one variable, and soon solved."""
    if not _is_relation(value) or len(value.free_symbols) != 1 or not _are_small(value):
        return False
    if any((part.lhs - part.rhs).expand().free_symbols != value.free_symbols for part in _parts(value)):
        return False  # x < x + 1
    sides = [side.replace(sympy.Abs, lambda inner: inner) for part in _parts(value) for side in part.args]
    return all(side.is_rational_function() and all(sympy.degree(part, *value.free_symbols) <= HIGHEST_SOLVED
                                                   for part in sympy.fraction(side)) for side in sides)


def _is_relation(value: Any) -> bool:
    return all(isinstance(part, Relational) and not isinstance(part, sympy.Eq) for part in _parts(value))


def _parts(value: Any) -> tuple:
    return value.args if isinstance(value, sympy.And) else (value,)


def _as_union(value: Any) -> Any:
    """x < 1, x > 2 as what either of them allows."""
    several = isinstance(value, sympy.FiniteSet) and all(map(_is_inequality, value.args))
    return sympy.Union(*map(_as_set, value.args)) if several else value


def _as_set(inequality: Any) -> Any:
    try:
        return inequality.as_set()
    except (NotImplementedError, TypeError, ValueError):  # what sympy cannot solve stays as it is
        return inequality


def _same_sets(one: Any, other: Any, float_rounding: int, numeric_precision: int) -> bool:
    """In place of math-verify's comparison of sets, which takes long where they have symbols."""
    if not all(isinstance(each, sympy.FiniteSet) for each in (one, other)):
        finite = [each for each in (one, other) if isinstance(each, sympy.FiniteSet)]
        mixed = finite and not any(isinstance(each, sympy.Tuple) for each in (one, other))
        return not (mixed and len(finite[0]) > PAIR) and _by_sets(one, other, float_rounding, numeric_precision)
    left, right = ([each for each in a.args if each not in b.args] for a, b in ((one, other), (other, one)))
    for each in left if len(left) == len(right) else ():
        equal = (found for found in right if grader.sympy_expr_eq(each, found, float_rounding, numeric_precision))
        if (found := next(equal, None)) is None:
            return False
        right.remove(found)
    return not right and len(one) == len(other)


def _same_number(one: Any, other: Any, float_rounding: int, numeric_precision: int) -> bool:
    """In place of math-verify's comparison of what is neither a set nor a relation, which rounds to six decimals."""
    close = all_close(one, other)
    return _by_rounding(one, other, float_rounding, numeric_precision) if close is None else close


def _same_expression(one: Any, other: Any) -> bool:
    """In place of math-verify's simplification, which takes long, where numbers decide."""
    close = all_close(one, other)
    return _by_simplifying(one, other) if close is None and _are_small(one, other) else bool(close)


def _same_solutions(one: Any, other: Any, float_rounding: int, numeric_precision: int) -> bool:
    """In place of math-verify's solving: whether the sides' differences are multiples of each other."""
    ratios = [_ratio(one.lhs - one.rhs, other.lhs - other.rhs, point) for point in POINTS[:3]]
    if any(ratio is None or ratio == 0 for ratio in ratios) or type(one) is not type(other):
        return False
    tolerance = TOLERANCE if one.has(sympy.Float) or other.has(sympy.Float) else EXACT
    same = all(abs(ratio - ratios[0]) <= tolerance * abs(ratios[0]) for ratio in ratios)
    return bool(same and (isinstance(one, (sympy.Eq, sympy.Ne)) or ratios[0] > 0))


def _ratio(one: Any, other: Any, point: Any) -> Any:
    names = sorted(one.free_symbols | other.free_symbols, key=str)
    a, b = (_evaluate(each.subs(_values(names, point))) for each in (one, other))
    return a / b if a.is_Number and b.is_Number and b != 0 and one.free_symbols == other.free_symbols else None


def all_close(one: Any, other: Any) -> bool | None:
    """Whether the values are equal wherever both have one; None for what has a value at too few points."""
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return None
    names = sorted(one.free_symbols | other.free_symbols, key=str)
    points = _points(sympy.Tuple(one, other)) if names else POINTS[:1]
    close = [_close_at(one, other, _values(names, point)) for point in points]
    if False in close:
        return False
    return True if close.count(True) >= min(ENOUGH, len(points)) else None


def _points(both: Any) -> list:
    return WHOLE if both.has(sympy.Sum, sympy.Product) else POINTS + WHOLE * both.has(*STEPS)


def _values(names: list, point: Any) -> dict:
    step = 1 if point.is_Integer else sympy.Rational(1, 7)
    return {name: point + step * position for position, name in enumerate(names)}


def _close_at(one: Any, other: Any, values: dict) -> bool | None:
    """Whether both are equal there. Where roots and logarithms leave one without a real value, that is a difference
    only if the other has an absolute value for it."""
    real = [_is_real(each, values) for each in (one, other)]
    if not all(real):
        return False if any(real) and one.has(sympy.Abs) != other.has(sympy.Abs) else None
    return _close(*(each.subs(values) for each in (one, other)))


def _is_real(value: Any, values: dict) -> bool:
    """Whether no root or logarithm of something negative is taken; of numbers and of what is complex none is asked."""
    if not values or value.has(sympy.I):
        return True
    inner = [power.base for power in value.atoms(sympy.Pow) if power.exp.subs(values).is_integer is False]
    inner += [logarithm.args[0] for logarithm in value.atoms(sympy.log)]
    return not any(each.subs(values).is_negative for each in inner)


def _close(one: Any, other: Any) -> bool | None:
    """Whether two numbers are equal, decimals as far as they go; None for what is no number."""
    a, b = _evaluate(one), _evaluate(other)
    difference, *sizes = abs(a - b), abs(a), abs(b)
    if not all(each.is_Number and each.is_finite for each in (difference, *sizes)):
        return None
    size, decimals = max(sizes), one.has(sympy.Float) or other.has(sympy.Float)
    if difference > (max(TOLERANCE * min(1, size), size * 1e-14) if decimals else size * EXACT):
        return False
    exact = [each.doit() for each in (one, other)]
    return exact[0] == exact[1] if all(each.is_Rational for each in exact) else True


def _evaluate(number: Any) -> Any:
    """Thirty digits of it; 0 where sympy finds no digit that is not noise, and nothing of a sum that stays one."""
    number = number.doit() if number.has(sympy.Sum, sympy.Product, sympy.UnevaluatedExpr) else number
    value = sympy.nan if number.has(sympy.Sum, sympy.Product) else number.evalf(30)
    return sympy.S.Zero if value.is_Float and value._prec == 1 else value


def _are_small(*values: Any) -> bool:
    return all(value.count_ops() <= LONGEST_SOLVED for value in values if isinstance(value, sympy.Basic))


_by_rounding, grader.sympy_numeric_eq = grader.sympy_numeric_eq, _same_number
_by_simplifying, grader.sympy_symbolic_eq = grader.sympy_symbolic_eq, _same_expression
_by_sets, grader.sympy_compare_sets = grader.sympy_compare_sets, _same_sets
grader.sympy_solve_and_compare = _same_solutions
