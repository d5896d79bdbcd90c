"""What counts as the same answer, kind by kind: each has writings that are right and ones that are nearly so."""

import pytest

from rewards.answers import after_thought, clean_reference, hashed, strict_answer
from rewards.math_text import normalize, unicode_to_latex
from rewards.mathematics import make_math, make_math_format, make_math_strict

LENIENT, STRICT, FORMAT = make_math(timeout=30.0), make_math_strict(timeout=30.0), make_math_format()

RIGHT = {
    "bases": [
        ("12_5", "12_{5}"),
        ("1A_{16}", r"1A_{\text{sixteen}}"),
        ("321_4", "321 base 4"),
        ("021_4", "21_4"),
        ("321_4", r"321 \text{ (base 4)}"),
        ("321_4", r"321_{(4)}"),
        (r"\log_2 8", "3"),
        ("x_1+x_2", "x_2+x_1"),
    ],
    "dates and times": [
        ("2020-02-03", "2020-2-3"),
        ("4/2/2019", "04/02/2019"),
        ("May 1, 2019", r"\text{May 1, 2019}"),
        ("6:30", "06:30"),
        ("6:30 PM", r"6{:}30\text{ p.m.}"),
        ("5 pm", r"5 \text{ PM}"),
        ("6:30", "6:30 am"),
        ("3:4", "15:20"),
        ("June 20", r"\text{June 20}"),
    ],
    "magnitudes": [
        (r"\frac{1}{3}", "0.333333"),
        (r"\frac{2}{3}", "0.666667"),
        ("2.5e-10", r"2.5\times10^{-10}"),
        (r"e^{-50}", r"\frac{1}{e^{50}}"),
        (r"6.02\times10^{23}", "602000000000000000000000"),
        (r"\{10^{-8}, 1\}", r"\{1, 0.00000001\}"),
        (r"\frac{x}{2^{40}}", r"x \cdot 2^{-40}"),
        (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"),
        ("25.5", "25.50"),
        ("7", "007"),
        ("-08", "-8"),
        ("0.5", "00.50"),
    ],
    "upright letters": [
        (r"\mathrm{e}", "e"),
        (r"2\mathrm{i}", "2i"),
        (r"1+\text{i}", "i+1"),
        (r"{\rm e}^2", "e^2"),
        (r"e^{\mathrm{i}\pi}", "-1"),
        ("(1+i)^2", r"2\operatorname{i}"),
        (r"\frac{1}{\imath}", "-i"),
    ],
    "Unicode": [
        ("−3", "-3"),
        ("2×3", "6"),
        ("8÷2", "4"),
        ("2√3", r"2\sqrt{3}"),
        ("√12", r"2\sqrt3"),
        ("√(x+1)", r"\sqrt{x+1}"),
        ("π/2", r"\frac{\pi}{2}"),
        ("1½", "1.5"),
        ("⅔", r"\frac23"),
        ("x⁻¹²", r"\frac{1}{x^{12}}"),
        ("x₁₀", "x_{10}"),
        ("(−∞, 0) ∪ (1, ∞)", r"(-\infty,0)\cup(1,\infty)"),
        ("x ≤ 2", r"x\le 2"),
        ("x ≠ 2", r"x\ne2"),
        ("45°", "45"),
        ("±3", "3,-3"),
        ("∅", r"\emptyset"),
        ("ℝ", r"\mathbb{R}"),
        ("１２", "12"),
        ("𝟏𝟐", "12"),
        ("٣", "3"),
        ("5 – 2", "3"),
        ("∛8", "2"),
        ("α+β", r"\beta+\alpha"),
        ("“yes”", "yes"),
        ("₹18", "18"),
        ("18", "18 ✓"),
        ("3∕4", "0.75"),
    ],
    "references from JSON": [
        (1e22, r"10^{22}"),
        (1e-7, "0.0000001"),
        (1e-7, r"\frac{1}{10^7}"),
        (2.0, "2"),
        (0, "0"),
        (1.5e300, r"1.5\times10^{300}"),
        (10**20 + 1, "100000000000000000001"),
        (False, "false"),
    ],
    "wrappers": [
        ("42", wrapped)
        for wrapped in (
            r"\fbox{42}",
            r"\color{red}42",
            r"{\color{blue}42}",
            r"\textcolor{red}{42}",
            r"\color[rgb]{1,0,0}{42}",
            r"\mathbf{42}",
            r"\boldsymbol{\text{42}}",
            r"{\bf 42}",
            "**42**",
            "*42*",
            "__42__",
            "`42`",
            "<b>42</b>",
            r"\underline{42}",
            r"\displaystyle 42",
            r"\Large 42",
            r"\left(42\right)",
            r"\bigl(42\bigr)",
            r"$42$",
            r"\(42\)",
            r"\[42\]",
            r"\begin{align*}&42\end{align*}",
            r"\ 42\ ",
            r"\quad 42",
            r"\hspace{1cm}42",
            r"42\\",
            "{42}",
        )
    ]
    + [
        (r"\frac{1}{2}", r"\\frac{1}{2}"),
        (r"\{1,2\}", r"\left\{1,2\right\}"),
        (r"\overline{z}", r"\bar z"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
        ("Paris", r"\textbf{paris}"),
        ("2x", r"2\,x"),
        ("0.5", r"\left.\frac{1}{2}\right."),
        ("3!", r"6\!"),
    ],
    "empty sets": [(r"\varnothing", r"\emptyset"), (r"\{\}", r"\varnothing")],
    "repeating decimals": [
        (r"\frac13", r"0.\overline{3}"),
        (r"0.1\overline{6}", r"\frac16"),
        (r"0.\bar{3}", "1/3"),
        (r"0.\dot3", "1/3"),
        (r"0.\dot{1}4285\dot{7}", r"\frac17"),
        ("1.(3)", r"\frac43"),
        (r".\overline{12}", r"\frac{4}{33}"),
        ("0.1666...", r"\frac16"),
        (r"0.1212\ldots", r"\frac{4}{33}"),
        ("0.3\u0305", r"\frac13"),
    ],
    "spellings": [
        ("1.5e-3", "0.0015"),
        ("1.5 x 10^3", "1500"),
        ("10^-3", "0.001"),
        ("2**10", "1024"),
        ("1 1/2", "1.5"),
        ("sqrt(2)/2", r"\frac{\sqrt{2}}{2}"),
        (r"\sqrt(3)", r"\sqrt3"),
        ("2pi", r"2\pi"),
        ("sin x", r"\sin(x)"),
        ("(-infinity, 2)", r"(-\infty,2)"),
        (r"\nicefrac{1}{2}", "0.5"),
        ("x^10", r"x^{10}"),
        ("2^(x+1)", r"2^{x+1}"),
        (r"\sqrt 12", r"2\sqrt3"),
        ("30\\degree", "30"),
        (r"25^\circ C", "25"),
    ],
    "thousands": [
        ("1234567", "1,234,567"),
        ("1000", r"1\,000"),
        ("1000", "1{,}000"),
        ("1000", r"1,\!000"),
        ("1000", "1 000"),
        ("(1000,2)", "(1{,}000, 2)"),
        ("x=1000", "x=1,000"),
        ("1234.5", "1,234.5"),
    ],
    "units": [
        ("18", "18 eggs"),
        ("5", r"5\text{ cm}^2"),
        ("5", r"5 \mathrm{~km/h}"),
        ("5", "5 m"),
        ("9.8", r"9.8\,\mathrm{m/s^2}"),
        (r"5\sqrt{3}", r"5\sqrt{3} cm"),
        (r"5\pi", r"5\pi \text{ square units}"),
        ("72", "72 (cm)"),
        ("72", "72 cups of water"),
        ("0.5", r"\frac{1}{2} \text{ mile}"),
        ("60", "5 dozen eggs"),
        ("12000000", r"12\text{ million dollars}"),
        ("18", r"\$18"),
        ("18", r"\text{Rs. }18"),
        ("18", "USD 18"),
        ("12.5", r"12.5\%"),
        ("0.125", "12.5 percent"),
        ("50%", r"\frac12"),
        (r"\frac{25}{2}\%", "12.5"),
    ],
    "labels": [
        ("72", r"\text{The answer is }72"),
        ("72", r"\text{Area} = 72\text{ cm}^2"),
        ("72", "Total: 72"),
        ("72", r"\approx 72"),
        ("Paris", "The capital is Paris"),
        ("72", "x = 72"),
        ("72", r"x \approx 72"),
        ("72", "She bought 72 apples"),
    ],
    "choices": [
        ("13", r"\textbf{(B)}\ 13"),
        ("B", "(B) 13"),
        ("B", "B. Paris"),
        (r"\textbf{(B) }\frac12", "0.5"),
        ("(B) 13", "B"),
        ("(B) 13", "(B) 13.0"),
    ],
    "sets and relations": [
        ("[2,3]", r"2\le x\le 3"),
        ("x>2", "2<x"),
        ("x=1,y=2", "y=2,x=1"),
        (r"\pm 2", "2,-2"),
        ("1,2", r"1\text{ and }2"),
        ("(1,2),(3,4)", "(3,4),(1,2)"),
    ],
}
WRONG = {
    "tails": [
        ("5", tail)
        for tail in (r"5\foo{3}", r"5 \unknown", r"5\sqrt(3)", "5@", "5#", r"5\left(", "5 +", "(5", "5_", "5^")
    ],
    "bases": [
        ("12_5", "12_6"),
        ("12_5", "12"),
        ("12", "12_5"),
        ("1A_{16}", "1B_{16}"),
        ("110_2+1_2", "110_2+1_3"),
        ("12_5", "7"),
        ("a_{10}", "a_{11}"),
        ("321_4", "321 base 5"),
    ],
    "dates and times": [
        ("2020-02-03", "2020-03-02"),
        ("4/2/2019", "2/1/2019"),
        ("May 1, 2019", "May 2, 2019"),
        ("6:30", "1:05"),
        ("6:30 AM", "6:30 PM"),
        ("5 PM", r"5\text{ AM}"),
        ("1:2:3", "2:4:3"),
        ("1:2", "2:1"),
        ("2019", "2019-01-01"),
        ("01.05.2020", "05.01.2020"),
        ("9:30 on Monday", "9:30 on Tuesday"),
    ],
    "magnitudes": [
        ("10^{-9}", r"2\cdot10^{-9}"),
        ("0", "0.0000001"),
        ("0.0000001", "0"),
        (r"\frac13", "0.3333"),
        (r"\frac{1}{100!}", r"\frac{1}{101!}"),
        (r"(10^{-8}, 1)", r"(10^{-9}, 1)"),
        (r"x=10^{-8}", r"x=10^{-9}"),
        (r"[0,10^{-8}]", r"[0,10^{-9}]"),
        (r"\frac{x}{2^{60}}", r"\frac{x}{2^{61}}"),
        ("2^{100}", "2^{100}+1"),
        (r"\begin{pmatrix}10^{-9}\\1\end{pmatrix}", r"\begin{pmatrix}10^{-8}\\1\end{pmatrix}"),
        ("-0.0000012", "0.0000012"),
        ("6.02e23", "6.03e23"),
        (r"\lfloor x\rfloor", "1"),
    ],
    "upright letters": [
        (r"2\mathrm{i}", "2"),
        (r"\mathrm{e}^2", r"\mathrm{e}^3"),
        (r"5\mathrm{e}", r"5\mathrm{i}"),
        ("1", r"\mathrm{i}"),
        (r"2\mathrm{j}", "2"),
    ],
    "Unicode": [
        ("−3", "3"),
        ("2π", "π"),
        ("½", "¼"),
        ("x²", "x³"),
        ("√2", "√3"),
        ("x₁", "x₂"),
        ("2", "2π"),
        ("ℝ", "ℤ"),
        ("x ≥ 2", "x ≤ 2"),
        ("4²³", "4^2 3"),
    ],
    "references from JSON": [
        (1e22, r"10^{21}"),
        (1e-7, "2e-7"),
        (1e-7, "0"),
        (10**20 + 1, "100000000000000000000"),
        (True, "false"),
    ],
    "wrappers": [
        ("42", r"\fbox{43}"),
        ("42", r"\color{red}24"),
        ("Paris", r"\textbf{Rome}"),
        (r"\overline{AB}", r"\overline{AC}"),
        (r"\bar{z}", "z"),
        ("8", "2**4"),
    ],
    "empty sets": [(r"\varnothing", "0"), (r"\varnothing", r"\{0\}")],
    "repeating decimals": [
        (r"0.\overline{3}", "0.33"),
        (r"0.\overline{6}", r"0.\overline{3}"),
        (r"0.\overline{12}", r"0.1\overline{2}"),
        ("0.333...", "0.333"),
    ],
    "thousands": [("12345", "12, 345"), ("3.5", "3,5"), ("(100,200)", "100200"), ("1,2,3", "123")],
    "units": [
        ("5", "5 dozen"),
        ("12", "12 million"),
        ("4", "4 squared"),
        ("3", "3 quarters"),
        ("8", r"8 \text{ or more}"),
        ("3", "3m"),
        ("2", "2d"),
        ("24", "24abc"),
        ("5", r"5\%\text{ of }x"),
        ("50", r"0.5\%"),
        ("5", "5k"),
        ("5", "5 apples and 3 pears"),
    ],
    "labels": [
        ("72", r"\text{Area} = 71"),
        ("Paris", "The capital is Rome"),
        ("72", "She bought 71 apples"),
        ("3", "5 mod 3"),
        ("2", r"x \equiv 2 \pmod{3}"),
    ],
    "choices": [("13", "(B) 14"), ("B", "(C) 13"), ("(B) 13", "(C) 13"), ("(B) 13", "(B) 14"), ("(B) 13", "C")],
    "sets and relations": [
        ("[2,3]", r"2< x\le 3"),
        ("x>2", r"x\ge2"),
        ("(x,y)=(1,2)", "(2,1)"),
        ("line ABCD", "line DCBA"),
        (r"\frac{a}{b}", r"\frac{b}{a}"),
    ],
}
PROSE = [
    ("9\\pi", "So the area is 9π.", 1),
    ("9", "So the area is 9π.", 0),
    ("5", r"The answer is $5\foo{3}$.", 0),
    ("42", "The answer is 42 apples, of 50.", 1),
    ("0.5", "The answer is .5", 1),
    ("5", "The answer is .5", 0),
    ("1,2", "The solutions are $x=1$ and $x=2$.", 1),
    ("2020-02-03", "It was on 2020-02-03.", 1),
    ("2020-02-03", "It was on 2020-03-02.", 0),
    ("77", "The answer is $77_8$.", 0),
    ("77_8", "It must be 77_8.", 1),
    ("3:30 PM", "They meet at 3:30 AM.", 0),
    ("-5", "The answer is −5.", 1),
    ("12", "2 + 10 = 12 ✓", 1),
    ("12", "- 12", 1),
    ("42", "**Final Answer**: 42", 1),
    ("42", r"\textbf{42}", 1),
    ("42", "<ANSWER>42</Answer>", 1),
    ("42", r"\fbox{42}", 1),
    ("42", "*42*", 1),
    ("3/4", "The probability is ¾.", 1),
    ("42", r"\boxed 42", 1),
    ("42", "<answer>42", 1),
    ("42", "<think>41</think><answer> $42$", 1),
    ("42", "<final_answer>42</final_answer>", 1),
    ("42", "<think>42</think>", 1),
    ("42", "<|begin_of_thought|>41<|end_of_thought|>42", 1),
    ("1", "We begin.\n#### Step 1", 0),
    ("1000000", "There are about 1 million people.", 1),
    ("1", "There are about 1 million people.", 0),
    ("1,2", "The solutions are 1 and 2.", 1),
    ("1,2", "x = 1 or x = 2", 1),
    ("1,2", "The solutions are $1$ and $2$, as $4-2=2$ shows.", 0),
    ("42", "The number is forty-two (42).", 1),
    ("42", "1. 41\n2. 42", 1),
    ("72", "### 72", 1),
    ("1234567", "It has 1 234 567 digits", 1),
    ("3:30 PM", "The answer is 3:30 PM, as 2:00 PM was before.", 1),
    ("42", "It costs $5 and sells for $42", 1),
    ("-5", "between 3 and -5", 1),
    ("3/4", "chances of 3/4 in 2 of $\\text{no formula that is read}$", 0),
]
PLACES = [
    ("#### 42\n\n#### Remark\nFine.", "42"),
    ("#### 42\n#### Remark", "42"),
    (r"\boxed{42}" + "\n#### Remark", "42"),
    (r"\boxed{42}" + "\n#### Check: 5\n5 = 5", "42"),
    ("#### 1. Setup\n7\n#### (a) Then\n8", None),
    ("#### Step 1", None),
    ("So\n#### **Part b**", None),
    ("#### 42\n#### Step 2", "42"),
    (r"$x=\boxed{1}$ or $x=\boxed{2}$", "1, 2"),
    (r"\boxed{1}, \boxed{2}, and \boxed{1}", "1, 2"),
    (r"\boxed{1} \boxed{2}", "2"),
    (r"[THINK]\boxed{1}[/THINK]\boxed{2}", "2"),
    ("#### Plan\nx\n#### Paris", "Paris"),
    ("#### Paris\nI hope so", None),
    ("#### 💡 Hint\n5", None),
    ("#### **42**", "42"),
    ("##### 42", "42"),
    ("#### Answer: 42\nok", "42"),
    ("#### The answer is 42", "42"),
    ("#### = 42", "= 42"),
    (r"\fbox{42}", "42"),
    (r"\boxed{1} \fbox{2}", "2"),
    (r"<think>\boxed{1}</think>\boxed{2}", "2"),
    (r"<think>\boxed{1}</think>", "1"),
    ("<think>#### 1</THINK>#### 2", "2"),
    (r"<think>\boxed{1}</think>So 2.", None),
    (r"<think>a</think>\boxed{2}<think>b", "2"),
]
REFERENCES = [
    ("6*7.\n#### 42\n\n#### Remark\nNice.", "42"),
    ("So \\boxed{42}.\n\n#### Remark\nSee 5.", "42"),
    ("42", "42"),
    ("The answer is $42$.\n\n#### Remark\nSee 5.", "$42$"),
    ("<answer>42</answer>", "42"),
    ("x\n#### Paris", "Paris"),
    (72.0, "72.0"),
    (None, None),
    (" ", None),
    ([3, "x"], "3, x"),
    ("<think>41</think>42", "42"),
]


def boxes(kinds):
    return [(reference, rf"So \boxed{{{answer}}}") for rows in kinds.values() for reference, answer in rows]


def verdicts(rows):
    return LENIENT(["?"] * len(rows), [text for _, text in rows], answer=[reference for reference, _ in rows])


@pytest.mark.parametrize(("kinds", "right"), [(RIGHT, 1.0), (WRONG, 0.0)])
def test_answers_of_every_kind(kinds, right):
    rows = boxes(kinds)
    assert [row for row, value in zip(rows, verdicts(rows), strict=True) if value != right] == []


def test_answers_in_prose():
    values = verdicts([row[:2] for row in PROSE])
    assert [row for row, value in zip(PROSE, values, strict=True) if value != row[2]] == []


@pytest.mark.parametrize(("text", "answer"), PLACES)
def test_headings_and_thoughts_are_no_answers(text, answer):
    assert strict_answer(text) == answer
    assert FORMAT(["?"], [text]) == [float(answer is not None)]


def test_behind_a_thought_counts_also_where_nothing_marks_it():
    texts = [
        r"<think>\boxed{41}</think>42",
        r"<think>\boxed{42}</think>The answer is 41.",
        r"<think>\boxed{42}</think>",
    ]
    assert LENIENT(["?"] * 3, texts, answer=["42"] * 3) == [1.0, 0.0, 1.0]
    assert STRICT(["?"] * 3, texts, answer=["42"] * 3) == [0.0, 0.0, 1.0]
    assert after_thought("a</think>b</thinking>c 1") == "c 1"


@pytest.mark.parametrize(("reference", "bare"), REFERENCES)
def test_references_are_found_in_solutions(reference, bare):
    assert clean_reference(reference) == bare


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("**42**", "42"),
        (r"\fbox{42}", "42"),
        ("$42$", "42"),
        (r"\[42\]", "42"),
        ("42 (apples)", "42"),
        ("She has 42 apples.", "42"),
        ("Hence, the total is $42$.", "42"),
        (r"{\color{red}42}", "42"),
        ("So there are 3 boxes of 14, that is 42 in all.", "42"),
        ("We have 3 of $14$ each, hence she has $3\\cdot 14 = 42$ apples in the end.", "42"),
    ],
)
def test_references_are_read_as_answers_are(reference, text):
    assert verdicts([(reference, rf"\boxed{{{text}}}"), (reference, r"\boxed{41}")]) == [1.0, 0.0]


def test_the_longest_answer_is_rewritten_quickly():
    for unit in ("{", "$", "(", "a ", "1", "1 ", "1,", r"\text{a}", "0.12", "5 a", "`", "sqrt(", "12:30 ", "½", "A1"):
        text = (unit * 2000)[:2000]
        assert isinstance(normalize(text), str)
    assert hashed("####" * 1000 + "5") == (3996, "5")
    assert unicode_to_latex("x²⁺¹") == "x^{2+1}"
