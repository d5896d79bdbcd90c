r"""LaTeX as sympy's objects, by latex2sympy's grammar, within bounds.

Nothing of the text is ever evaluated as a program: sympify of strings, which is parse_expr, is not called, and since
sympy's lambdify (which sums may call) writes the names of symbols and functions into a program, only texts of known
characters, commands and names are read at all; others are compared as text. Length, nesting and the size of numbers are
bounded before sympy works them out: 9^{9^{9^9}} is refused, not computed.
"""

import functools
import math
import re
from typing import Any

import sympy
from antlr4 import PredictionMode
from latex2sympy2_extended import NormalizationConfig, latex2sympy2
from latex2sympy2_extended.antlr_parser import PSLexer, PSParser
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
from latex2sympy2_extended.math_normalization import normalize_latex
from math_verify.grader import should_treat_as_complex
from sympy.core.relational import Relational

LATEX = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
DECIMAL = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
CHARACTERS = re.compile(r"[A-Za-z0-9\s+\-*/^_=<>!|()\[\]{}.,;:&\\%~']*")
COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMANDS = _words("""
    frac dfrac tfrac cfrac sqrt binom dbinom tbinom cdot times div pm mp ast le leq leqslant ge geq geqslant lt gt
    ne neq in notin cup cap setminus subset subseteq emptyset infty mathbb mathbf mathrm mathit text textbf textit
    textrm mbox bar overline vec overrightarrow hat widehat tilde widetilde sin cos tan cot sec csc arcsin arccos
    arctan arccot arcsec arccsc sinh cosh tanh arcsinh arccosh arctanh arsinh arcosh artanh log ln lg exp sum prod
    int lim to max min gcd lcm bmod mod lfloor rfloor lceil rceil langle rangle lvert rvert vert approx sim mid
    begin end left right operatorname partial angle triangle parallel perp alpha beta gamma delta epsilon
    varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi varpi rho varrho sigma varsigma tau upsilon
    phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar ell
    , ; : ! % { } \\ |""") | {" ", "\n"}
NAMED = re.compile(r"\\(begin|end|operatorname|math\w+|text\w*|mbox|bar|overline|vec|overrightarrow|\w*(?:hat|tilde))"
                   r"\s*\{([^{}]*)(.?)", re.DOTALL)
NAME = re.compile(r"[A-Za-z0-9 ,'_-]*")
ENVIRONMENTS = _words("matrix pmatrix bmatrix vmatrix array cases")
OPERATORS = _words("gcd lcm arsinh arcosh artanh arcsinh arccosh arctanh floor ceil")

LONGEST, DEEPEST, MOST_TOKENS, LONGEST_GUESS = 2000, 16, 600, 100
HUGE = 10**300
MOST_DIGITS = 50_000
"""of a number, worked out; sympy takes milliseconds up to here"""
MOST_TERMS = 1000
"""of a sum or product from one number to another"""
LARGEST_DETERMINANT = 6

RELATION = re.compile(r"[<>]|\\(?:[gl]e|ne)q?(?:slant)?(?![a-z])")
WORDS = [(re.compile(rf"\s*(?:\\(?:text|mathrm)\s*{{\s*{word}\s*}}|(?<![A-Za-z\\]){word}(?![A-Za-z])|\\l{word}(?![a-z])"
                     rf"|\\{sign}(?![a-z]))\s*"), kind)
         for word, sign, kind in (("or", "vee", sympy.Union), ("and", "wedge", sympy.Intersection))]
UNDONE = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)
"""what sympy would work out to compare the ends of an interval"""

GREEK = _words("alpha beta gamma delta epsilon theta lambda mu nu xi pi rho sigma tau phi chi psi omega")
DROPPED = re.compile(r"'|\\ldots|\d\s*_")
"""what latex2sympy would leave out: a prime behind no letter, dots, a number's subscript"""
PRIMED = re.compile(r"(?<=[A-Za-z])'+")
SYMBOL = re.compile(r"\\(?:text|math|operatorname|mbox)\w*\s*\{[^{}]*\}"
                    r"|(\\[A-Za-z]+|[A-Za-z])(?:\s*_\s*(?:\{([A-Za-z0-9]+)\}|([A-Za-z0-9])))?(\s*\^)?")


class Refused(Exception):
    """The text is not read: something in it is unknown, or would take too long."""


@functools.lru_cache(maxsize=256)  # the completions of a group share their reference, and many of them their answer
def read(text: str) -> list:
    """What the text says in LaTeX, all of it; empty where that is refused. A lone i is the imaginary unit."""
    if DECIMAL.fullmatch(text) and len(text) <= LONGEST:
        return [_number(text)]  # 05 is 5
    text = PRIMED.sub(lambda primes: f"_{{{len(primes[0]) * 'p'}}}", text)
    if len(text) > LONGEST or DROPPED.search(text):
        return []
    try:
        value = _combined(_each_sign(text.replace("%", r"\%")))
    except Exception:  # noqa: BLE001 - the parser raises Exception itself, and whatever sympy raises
        return []
    if not isinstance(value, (sympy.Basic, sympy.MatrixBase)):
        return []
    if isinstance(value, sympy.Eq) and isinstance(value.lhs, sympy.Expr) and not value.free_symbols:
        value = value.rhs  # 2 + 3 = 5
    names = [str(name) for name in value.free_symbols]
    return [value.subs(value.free_symbols.pop(), sympy.I) if names == ["i"] else value]


def _each_sign(text: str) -> str:
    r"""\frac{1 \pm x}{2} as both of its values; the grammar reads \pm only where nothing is around it."""
    signs = re.findall(r"\\[pm]{2}(?![a-z])", text)
    if not signs or "," in text or not re.search(r"[{(][^{}]*\\[pm]{2}(?![a-z])", text):
        return text
    return ", ".join(text.replace(r"\pm", plus).replace(r"\mp", minus) for plus, minus in ("+-", "-+"))


def _combined(text: str) -> Any:
    """What relations mean that "or" or "and" joins; a text without these is read as it is."""
    for word, kind in WORDS:
        parts = word.split(text)
        related = len(parts) > 1 and all(map(RELATION.search, parts))
        values = [_parse(_for_grammar(part)) for part in parts] if related else []
        if values and all(map(_is_inequality, values)):
            return kind(*(value.as_set() for value in values))
    return _parse(_for_grammar(text))


def _is_inequality(value: Any) -> bool:
    parts = value.args if isinstance(value, sympy.And) else (value,)
    return len(value.free_symbols) == 1 and all(
        isinstance(part, Relational) and not isinstance(part, sympy.Eq) for part in parts)


def is_readable(text: str) -> bool:
    """Whether all that stands in the text is known, and it is not deep."""
    return (bool(CHARACTERS.fullmatch(text)) and COMMANDS.issuperset(COMMAND.findall(text))
            and all(map(_is_name, NAMED.finditer(text))) and _depth(text) <= DEEPEST)


def _is_name(found: re.Match) -> bool:
    command, name, end = found.groups()
    known = {"begin": ENVIRONMENTS, "end": ENVIRONMENTS, "operatorname": OPERATORS}.get(command)
    return end == "}" and (name in known if known else bool(NAME.fullmatch(name)))


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char in "({[") - (char in ")}]")
        deepest = max(deepest, depth)
    return deepest


def _for_grammar(text: str) -> str:
    r"""x_{1} as \text{x_1} and x^{2} as {x}^{2}, which the grammar reads in one step."""
    return SYMBOL.sub(_symbol, normalize_latex(text, LATEX))


def _symbol(found: re.Match) -> str:
    name, subscript = found[1] or "", found[2] or found[3]
    if len(name) != 1 and name[1:] not in GREEK or name == "e" and not subscript:
        return found[0]
    symbol = rf"\text{{{name.lstrip(chr(92))}_{subscript}}}" if subscript else name
    return f"{{{symbol}}}^" if found[4] else symbol


def _parse(text: str) -> Any:
    """By the grammar's quick way, which some texts are ambiguous to; those by its slow way if they are short."""
    is_real = not should_treat_as_complex(text)
    try:
        return _Bounded(PredictionMode.SLL, is_real).parse(text)
    except Refused:
        raise
    except Exception:  # noqa: BLE001 - see above
        if len(text) > LONGEST_GUESS:
            raise
        return _Bounded(PredictionMode.LL, is_real).parse(text)


class _Bounded(_Latex2Sympy):
    """latex2sympy's reading, which refuses numbers that it would take long to work out."""

    def __init__(self, mode: PredictionMode, is_real: bool):
        super().__init__(is_real=is_real)
        self._mode = mode

    def create_parser(self, latex_str: str) -> Any:
        parser = super().create_parser(latex_str)
        parser._interp.predictionMode = self._mode
        parser.getTokenStream().fill()
        kinds = [token.type for token in parser.getTokenStream().tokens]
        if len(kinds) > MOST_TOKENS or not is_readable(latex_str) or PSLexer.VARIABLE in kinds:
            raise Refused
        return parser

    def parse_number(self, text: str) -> Any:
        return _number(text)

    def convert_exp(self, exp: Any) -> Any:
        return _real_root(_bounded(super().convert_exp(exp)))

    def convert_func(self, func: Any) -> Any:
        return _real_root(super().convert_func(func))

    def convert_postfix(self, postfix: Any) -> Any:
        return _bounded(super().convert_postfix(postfix))

    def convert_interval(self, expr: Any) -> Any:
        ends = [self.convert_expr(end) for end in expr.expr()]
        if any(end.has(*UNDONE) for end in ends):
            raise Refused
        return super().convert_interval(expr)

    def handle_exp(self, func: Any) -> Any:
        return _bounded(super().handle_exp(func))

    def convert_binom(self, binom: Any) -> Any:
        _bounded(sympy.factorial(self.convert_expr(binom.upper), evaluate=False))
        return super().convert_binom(binom)

    def convert_matrix(self, matrix: Any) -> Any:
        value = super().convert_matrix(matrix)
        if matrix.getRuleIndex() == PSParser.RULE_det and value.rows > LARGEST_DETERMINANT:
            raise Refused
        return value

    def handle_sum_or_prod(self, func: Any, name: str) -> Any:
        value = super().handle_sum_or_prod(func, name)
        _, start, end = value.limits[0]
        if (end - start).is_number and end.is_finite and start.is_finite and abs(end - start) > MOST_TERMS:
            raise Refused
        return value


def _number(text: str) -> sympy.Number:
    """A number's text as a number; latex2sympy would give it to sympify, which makes a program of it."""
    text = text.lower().replace(",", "").replace(" ", "")
    if abs(int(text.partition("e")[2] or 0)) > MOST_DIGITS:
        raise Refused
    return sympy.Float(text) if set(text) & set(".e") else sympy.Integer(int(text))


latex2sympy2.convert_number = _number


def _real_root(value: Any) -> Any:
    """Of an odd root of a negative number the real one; sympy's is complex."""
    if not (isinstance(value, sympy.Pow) and value.exp.is_Rational and value.exp.q % 2 and value.exp.q > 1):
        return value
    if not (value.base.is_number and value.base.is_negative):
        return value
    return (-1) ** value.exp.p * sympy.Pow(-value.base, value.exp, evaluate=False)


def _bounded(value: Any) -> Any:
    if isinstance(value, sympy.Basic) and _digits(value) > MOST_DIGITS:
        raise Refused
    return value


def _digits(value: sympy.Basic) -> float:
    """At least the number of digits that the value has, or a power of it, when it is worked out."""
    if isinstance(value, sympy.Rational):
        return math.log10(max(abs(value.p), value.q))
    if not value.args:
        return 1.0
    if isinstance(value, sympy.Pow):
        return _digits(value.base) * _size(value.exp)
    if isinstance(value, (sympy.exp, sympy.factorial)):
        return _size(value.args[0]) * max(1.0, _digits(value.args[0]))
    return sum(map(_digits, value.args))


def _size(value: sympy.Basic) -> float:
    """At least how large the value is, as far as that matters to how many digits a power has."""
    if value.is_Number and value.is_finite:
        return float(min(abs(value), HUGE))
    return 10.0 ** min(_digits(value), 300.0) if value.is_number else 1.0
