"""What a model writes is read, never run: texts made to execute, to grow without bound, or to nest without end."""

import sys

import pytest
import sympy

from rewards.math_prose import prose_answer
from rewards.math_reader import DEEPEST, LONGEST, MOST_DIGITS, read
from rewards.math_worker import same_answer

HOSTILE = [
    r"\variable{__import__('os').system('id')}",
    r"\\variable{exit}",
    r"\operatorname{exit}(3)",
    r"\\operatorname{eval}(x)",
    r"\operatorname{eye}(100000)",
    r"\mathrm{exit()}",
    r"\text{exit()}(3)",
    r"\overline{x.real}",
    r"\bar{a(b)}",
    r"\begin{exit}1\end{exit}",
    r"\sum_{n=0}^{\infty}\frac{\operatorname{exec}(x)^n}{n!}",
    r"[0, \sum_{n=0}^{\infty}\frac{x^n}{n!}]",
    "__import__('os')",
    "x.__class__",
    "5@3",
    "x#y",
    "½",
]
SAFE = [r"\frac{1}{2}", "x^2+1", "(1+1)", "2*(3-1)/4", "f(x)=3x", r"\sum_{k=1}^{5}k^2"]
SAFE += [r"\sum_{n=0}^{\infty}\frac{x^n}{n!}"]
SAFE += [r"\int_0^1 x^2 dx", "x>2", r"\{1,x\}", 'print("a")', "lambda: 3", "exit(3)", "f(x).real"]
HUGE = [
    "9^{9^{9^9}}",
    "9^{9^{9}}",
    "10^{-10^{9}}",
    "(x+1)^{1000000}",
    "(10^9)!",
    "9!!!!",
    r"e^{10^{9}}",
    r"\binom{1000000}{500000}",
    r"\sum_{k=1}^{1000000}k^{100}",
    r"\prod_{k=1}^{10^6}k",
    r"\begin{vmatrix}" + r"\\".join(["a&b&c&d&f&g&h"] * 7) + r"\end{vmatrix}",
    "(" * (DEEPEST + 1) + "1" + ")" * (DEEPEST + 1),
    "{" * 900 + "1" + "}" * 900,
    r"\sqrt{" * 100 + "2" + "}" * 100,
    "1+" * 900 + "1",
    "1" * (LONGEST + 1),
    "1,2,\\ldots,9",
    "2'",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_unknown_is_not_read(text):
    assert read(text) == []


@pytest.mark.parametrize("text", HUGE)
def test_what_would_take_long_is_not_read(text):
    assert read(text) == []


def test_what_is_within_bounds_is_read():
    assert read("2^{1000}")[0].doit() == 2**1000
    assert read("2004!")[0].doit() == sympy.factorial(2004)
    assert read(f"10^{{{MOST_DIGITS // 2}}}") != []
    assert read(r"\binom{2000}{1000}") == [sympy.binomial(2000, 1000)]
    assert read("(" * DEEPEST + "1" + ")" * DEEPEST) == [1]
    assert read("2+3=5") == [5]
    assert [str(name) for name in read("x_{10}^2")[0].free_symbols] == ["x_10"]
    assert read(r"x_1'") == [] != read("f'(x)")


def test_nothing_that_was_written_is_compiled(compiled):
    texts = [*HOSTILE, *SAFE]
    for counts in (False, True):  # what sympy imports at first is compiled, too
        compiled.clear(), read.cache_clear()
        for text in texts:
            same_answer("42", text, counts)
            same_answer(text, "42", counts)
            prose_answer(f"Then it is ${text}$, or {text}")
            same_answer(text, text + "+0", True)
    assert compiled == []


@pytest.fixture
def compiled():
    """The programs that are compiled or executed while the test runs."""
    seen: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, _: seen.append(event) if watching and event in ("compile", "exec") else None)
    yield seen
    watching.clear()
