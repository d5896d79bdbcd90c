r"""Mathematics as people write it, rewritten as LaTeX that a parser reads: Unicode, wrappers, labels, units, numbers.

`normalize` applies the rules in their order, alike to references and to answers. A rule removes what is known to change
no value; what it does not know it leaves, for the parser to read or to refuse.
"""

import re
import unicodedata
from fractions import Fraction
from itertools import groupby

from rewards.math_words import MEANINGS, numeral


def _named(chars: str, names: str) -> dict[str, str]:
    return dict(zip(chars, names.split(), strict=True))


COMMANDS = _named(
    "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϕϑ",
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega phi theta",
) | _named(
    "∴⇒×·⋅∙•÷∞≤⩽≥⩾≠≈±∓∪∩∈∅√∠△…⋯⌊⌋⌈⌉⟨⟩→∖",
    "therefore Rightarrow times cdot cdot cdot cdot div infty le le ge ge ne approx pm mp cup cap in emptyset sqrt "
    "angle triangle ldots ldots lfloor rfloor lceil rceil langle rangle to setminus")
SIGNS = {"−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "⁄": "/", "∕": "/", "∗": "*", "′": "'", "’": "'", "∶": ":",
         "°": r"^{\circ}", "º": r"^{\circ}", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "“": '"', "”": '"',
         **{letter: rf"\mathbb{{{plain}}}" for letter, plain in zip("ℝℤℕℚℂ", "RZNQC", strict=True)}}

FONTS = r"text(?:bf|it|rm|sf|tt|normal|up|md)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox"
DECORATIONS = (r"boxed|fbox|framebox|boldsymbol|bold|bm|pmb|emph|underline|uline|hl|ensuremath|mathop|smash|underbrace|"
               r"overbrace|(?:over|under)set\s*\{\s*\}")
OPENING = re.compile(rf"\\(?:(?P<font>{FONTS}|operatorname)|{DECORATIONS})\s*{{|\\[{{}}]|[{{}}]")
WRITTEN = re.compile(r"[A-Za-z\s.,'()/-]*")
"""what the braces of a font hold where it stays: words, which the parser would read as products without it"""
WRAPPED = re.compile(rf"\\(?:{FONTS})\s*{{([^{{}}]*)}}")

COMMAND_ENDS = re.compile(r"\\[A-Za-z]+$")
GROUP = re.compile(r"\{((?:[^{}]|\{[^{}]*\})*)\}")

BOLD = re.compile(r"\*\*([^*]+)\*\*|__([^_]+)__|`([^`]+)`|^_([^_]+)_$|^==([^=]+)==$|^'([^']+)'$")
LIST = re.compile(r"""\[\s*(["'])(.*)\1\s*\]""", re.DOTALL)
RAISED_UNITS = re.compile(rf"(?<=[\d\s}},;:~])\\(?:{FONTS})\s*\{{((?:[A-Za-z\s.,'()/~*-]|\\(?:cdot(?![a-z])|[,;: ])"
                          r"|\^\s*(?:\{-?\d\}|-?\d))*)\}")
BRACED = re.compile(r"\\(?:under|over)brace\s*\{([^{}]*)\}\s*[_^]\s*\{(?:[^{}]|\{[^{}]*\})*\}")
ONE_CELL = re.compile(r"\\begin\{(?:array\}\s*\{[clr|]*|cases|matrix)\}((?:[^&\\]|\\(?!\\|end))*)"
                      r"\\end\{(?:array|cases|matrix)\}")
SYSTEM = re.compile(r"\\begin\{(?:cases|aligned|gathered|array\}\s*\{[clr|]*)\}(.*?)"
                    r"\\end\{(?:cases|aligned|gathered|array)\}", re.DOTALL)
RAISED = re.compile(r"\\(?:cdot|[,;: ])|\^\s*(?:\{-?\d\}|-?\d)|[~*]")
ELLIPSIS = re.compile(r"\.{3,}|\\(?:c|d)?dots(?![a-z])")
ENVIRONMENTS = re.compile(r"\\(?:begin|end)\{(?:aligned|align|gathered|gather|equation|split|displaymath)\*?\}")
LOOKS = re.compile(
    r"\\fcolorbox\s*\{[^{}]*\}\s*\{[^{}]*\}|\\(?:text|f)?color(?:box)?\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}"  # colours
    r"|\\(?:left|right)(?![A-Za-z])\.?|\\[bB]igg?[lrm]?(?![A-Za-z])"  # sizes
    r"|\\(?:(?:display|text|script)style|limits|bf(?:series)?|rm|it|sf|tt|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge)"
    r"(?![A-Za-z])"
    r"|\\(?:boxed|fbox)(?!\s*\{)|(?<!\\)\\[\[\]()]|\\?\$|\\!"  # delimiters, negative space
    r"|\\[hv]?phantom\s*\{[^{}]*\}|\\(?:tag|label)\*?\s*\{[^{}]*\}\s*$"
    r"|\\(?:pounds|euro|yen|blacksquare|square|Box|qed|checkmark)(?![A-Za-z])"
    r"|</?(?:b|i|u|p|strong|em|span|div|br)\s*/?>|&nbsp;")
SPACES = re.compile(r"(?:(?<!\\)\\(?:[,;: ]|q?quad(?![a-z])|hspace\*?\{[^{}]*\}|hfill(?![a-z]))|(?<!~)~(?!~)|\s+)+")

SPELLINGS = [(re.compile(pattern), spelling) for pattern, spelling in (
    (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
    (r"\\(?:text)?degree(?![a-z])", r"^{\\circ}"),
    (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))", "°"),
    (r"\^\s*(?:\{((?:\s*\\prime)+)\s*\}|\\prime(?![a-z]))", lambda found: "'" * max(1, (found[1] or "").count("\\"))),
    (r"(\d+)\s*°\s*(\d+)\s*'(?:\s*(\d+)\s*(?:''|\"))?", lambda found: _minutes(*found.groups())),
    (r"\\(sin|cos|tan|cot|sec|csc)\s*[({]?\s*(\d+(?:\.\d+)?)\s*°\s*[)}]?", r"\\\1(\\frac{\2\\pi}{180})"),
    (r"°(?!\s*\.?$)\s*(?:(?:\\(?:text|mathrm)\s*\{)?[CFK](?![A-Za-z])\}?)?", ""),
    (r"\\(?:nicefrac|sfrac|flatfrac)(?![a-z])", r"\\frac"),
    (r"\\[ij]math(?![a-z])", "i"),
    (r"\\mathbb\s+([A-Z])", r"\\mathbb{\1}"),
    (r"\{([^{}]*?)\s*\\over(?![a-z])\s*([^{}]*)\}|^([^{}]*?)\s*\\over(?![a-z])\s*([^{}]*)$",
     lambda found: rf"\frac{{{found[1] or found[3]}}}{{{found[2] or found[4]}}}"),
    (r"^(?:minus|negative)\s+(?=[\d.\\])", "-"),
    (r"\\lg(?![a-z])", r"\\log_{10}"),
    (r"\\log\s*_\s*(?:e(?![a-z])|\{\s*e\s*\})", r"\\ln"),
    (r"\\[lr]angle(?![a-z])", lambda found: "(" if found[0] == r"\langle" else ")"),
    (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}|^(\w+)\s*\\choose\s*(\w+)$",
     lambda found: rf"\binom{{{found[1] or found[3]}}}{{{found[2] or found[4]}}}"),
    (r"^\]([^\[\]]+,[^\[\]]+)([\[\]])$", lambda found: f"({found[1]}" + (")" if found[2] == "[" else "]")),
    (r"^\[([^\[\]]+,[^\[\]]+)\[$", r"[\1)"),
    (r"^\\\{\s*([a-z])(?:\s*\\in\s*\\mathbb\s*\{R\})?\s*(?:\\mid(?![a-z])|\\vert(?![a-z])|\||:)\s*"
     r"(.*(?:[<>]|\\[gl]e|\\ne).*)\\\}$", r"\2"),
    (r"(\d)\s*\^\s*\{?\s*(?:\\(?:text|mathrm)\s*\{)?\s*(st|nd|rd|th)\s*\}?\}?(?![a-z])", r"\1\2"),
    (r"\\(bar|overline|vec|hat|tilde)\s*([A-Za-z])(?![A-Za-z])", r"\\\1{\2}"),
    (r"(?<![A-Za-z\\])(a(?:rc)?(?:sin|cos|tan)|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|alpha|beta|theta|lambda)"
     r"(?![A-Za-z])", r"\\\1 "),
    (r"(?<![A-Za-z\\])inf(?:inity)?(?![A-Za-z])", r"\\infty "),
    (r"\\sqrt\s*(\[\d+\])?\s*\(((?:[^()]|\([^()]*\))*)\)", r"\\sqrt\1{\2}"),
    (r"\\sqrt\s*(\[\d+\])?\s*(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])|\\pi(?![a-z]))", r"\\sqrt\1{\2}"),
    (r"(?<=\d)\*\*(?=[\d(-])", "^"),
    (r"\^\s*\(((?:[^()]|\([^()]*\))*)\)", r"^{\1}"),
    (r"\^\s*([+-]?\d+)", r"^{\1}"),
)]

LABEL = re.compile(rf"(?:\\(?:{FONTS})\s*{{)?\s*[A-Za-z][A-Za-z', ]+[A-Za-z]\s*}}?\s*"
                   r"(?:(?<![A-Za-z])(?:is|are|was|were|has|have|equals)(?![A-Za-z])|:|=|\\approx(?![a-z]))\s*}?[:\s]*")
LEADING = re.compile(rf"(?:\\(?:approx|sim|therefore|[Rr]ightarrow|implies|to)(?![a-z])|=>|->|=|:(?!:)|"
                     rf"(?:\\(?:{FONTS})\s*{{)?(?:USD?|EUR|GBP|INR|Rs\.?)\s*}}?"
                     r"(?=\s*[\d.])|\\frac\{d[a-z]?\}\{d[a-z]\}\s*[a-z]?\s*=)\s*")

PLAIN_NUMBER = re.compile(r"[+-]?[\d.,/ ]*\d\.?|[+-]?\d*\s*\\[dt]?frac\s*(?:\{\d+\}|\d)\s*(?:\{\d+\}|\d)")
COMMAND, MEASURES = re.compile(r"\\[A-Za-z]+"), re.compile(r"\d[^\d=]*[a-z]{2}[^\d=]*\d")
SYMBOLS = r"\\(?:cdot|mu|Omega|AA)(?![A-Za-z])\s*"
LAST_WORDS = re.compile(
    rf"(?P<value>.*?(?:[\d}})!%]|\\pi))(?P<words>\s*(?:\\(?:{FONTS})\s*{{{WRITTEN.pattern}}}|[A-Za-z(]| {SYMBOLS})"
    rf"(?:\\(?:{FONTS})\s*{{{WRITTEN.pattern}}}|[A-Za-z().\s/*]|{SYMBOLS}|-(?=[a-z])|\^{{-?\d}})*)", re.DOTALL)
WORD = re.compile(r"[A-Za-z]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


UNITS = _words("""mm cm dm km in ft yd mi mg kg lb lbs oz ml mL cl dl dL hr hrs min mins sec secs ms mph kmh kmph sq cu
    cubic square feet foot inch inches mile miles yard yards meter meters metre metres unit units degree degrees radians
    dollar dollars cent cents per of in on at by""")
LETTER_UNITS = _words("m g s h L")
LETTERS_IN_FONTS = LETTER_UNITS | _words("l d t N J W V A K C F")
PERCENT = _words("percent percentage pct")
MULTIPLIERS = {"dozen": "12", "hundred": "10^{2}", "thousand": "10^{3}", "million": "10^{6}", "billion": "10^{9}",
               "trillion": "10^{12}"}
NO_UNITS = _words("""and or if when where mod modulo base over plus minus times squared cubed factorial choose root half
    halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth
    ninths tenth tenths hundredth hundredths thousandth thousandths dozens hundreds thousands millions billions k am pm
    bc ad bce ce january february march april may june july august
    september october november december monday tuesday wednesday thursday friday saturday sunday
    sin cos tan cot sec csc log ln exp sqrt infinity inf""")
"""words behind a number that are no unit: they change its value or its kind"""

NUMBERS = [(re.compile(pattern), spelling) for pattern, spelling in (
    (r"(?<![\w.'])\d{1,3}(?:(?:_\d{3}){2,}|(?:'\d{3})+)(?![\w'])", lambda found: re.sub("['_]", "", found[0])),
    (r"^[+-]?\d{1,3}(?:\.\d{3}){2,}$", lambda found: found[0].replace(".", "")),
    (r"(?<=\d)\{,\}(?=\d{3}(?!\d))", ""),
    (r"(?<![\d.,])(\d{1,3})((?: \d{3})+)(?!\d)", lambda found: found[1] + found[2].replace(" ", "")),
    (r"(^|[=<>]|\\[gl]eq?|\\approx)(\s*[+-]?\d{1,3})((?:,\d{3})+)(?=(?:\.\d+)?\s*%?$)",
     lambda found: found[1] + found[2] + found[3].replace(",", "")),
    (r"(?<![A-Za-z\d])(\d+(?:\.\d*)?|\.\d+)\s*[eE]([+-]?\d+)(?![\w.])",
     lambda found: rf"{found[1]}\times 10^{{{int(found[2])}}}"),
    (r"(?<=\d)\s*[xX*]\s*(?=\d)", r"\\times "),
    (r"(?<![\d}/]) ?(\d+) (\d+)/(\d+)(?!\d)", r"\1\\frac{\2}{\3}"),
    (r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))(?:(\d*)\\dot\s*(?:\{(\d)\}|(\d)))?(?![\d\\])",
     lambda found: _repeating(found[1], found[2], "".join(digits or "" for digits in found.groups()[2:]))),
    (r"(?<![\d.])(\d{0,30})\.(\d{0,20}?)(\d{1,8}?)\3{1,40} ?\\ldots", lambda found: _repeating(*found.groups())),
    (r"(?<![\d.])(\d*)\.(\d*)\((\d+)\)(?!\d)", lambda found: _repeating(*found.groups())),
    (r"(?<![\d.])(\d*)\.(\d*?)((?:\d[\u0305\u0307])+)", lambda found: _repeating(
        found[1], found[2], re.sub(r"\D", "", found[3]))),
)]


def normalize(text: str) -> str:
    """The text as plain LaTeX."""
    found = LIST.fullmatch(text.strip())
    text = without_wrappers(unicode_to_latex(re.sub(r"""["']\s*,\s*["']""", ", ", found[2]) if found else text))
    for pattern, spelling in SPELLINGS:
        text = pattern.sub(spelling, text)
    text = without_units(without_label(text.strip()))
    for pattern, spelling in NUMBERS:
        text = pattern.sub(spelling, text)
    text = text.strip(" ,;")
    return MEANINGS.get(text.lower()) or numeral(text) or text


def unicode_to_latex(text: str) -> str:
    r"""− × √ π ≤ ∞ ° and their like as commands, ½ as \frac{1}{2}, x²⁰ as x^{20}, wide and bold letters as plain ones,
    currency signs, pictures and what has no width as nothing."""
    if text.isascii():
        return text
    text = "".join(f"{shift}{{{''.join(map(_latex, chars))}}}" if shift else "".join(map(_latex, chars))
                   for shift, chars in groupby(text, key=_shift))
    return re.sub(r"\^\{(\d+)\}/_\{(\d+)\}", r"\\frac{\1}{\2}", text)


def _shift(char: str) -> str:
    """Whether the character is raised or lowered: ^, _ or neither."""
    kind = unicodedata.decomposition(char).partition(" ")[0]
    return "" if char in SIGNS else {"<super>": "^", "<sub>": "_"}.get(kind, "")


def _latex(char: str) -> str:
    if char in SIGNS or char in COMMANDS:
        return SIGNS.get(char) or rf"\{COMMANDS[char]} "
    if not char.isascii() and unicodedata.category(char) in ("Sc", "So", "Cf"):
        return ""
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    over, slash, under = unicodedata.normalize("NFKC", char).partition("⁄")
    return rf" \frac{{{over}}}{{{under}}}" if slash and under else SIGNS.get(over, over)


def without_wrappers(text: str) -> str:
    """The text without what is only looks: maths delimiters, Markdown, colours, boxes, sizes, bold, kinds of spaces."""
    text = SYSTEM.sub(_in_a_row, BRACED.sub(r"\1", ONE_CELL.sub(r"\1", text.strip())))
    text = RAISED_UNITS.sub(lambda units: rf"\text{{{RAISED.sub(' ', units[1])}}}", text)
    text = BOLD.sub(lambda bold: next(filter(None, bold.groups())), text).replace(r",\!", "{,}").replace("{:}", ":")
    text = SPACES.sub(" ", LOOKS.sub("", ELLIPSIS.sub(r"\\ldots ", text.replace(r"\%", "%"))))
    if ENVIRONMENTS.search(text):
        text = ENVIRONMENTS.sub("", text).replace("&", " " if "matrix" not in text else "&")
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)  # escaped once too often
    text = _without_fonts(text).strip(" *`\"")
    grouped = GROUP.fullmatch(text)
    return (grouped[1] if grouped else text).rstrip("\\ .")


def _in_a_row(system: re.Match) -> str:
    """The equations of a system with commas between them; what has other rows stays as it is."""
    rows = [row.replace("&", "").strip() for row in system[1].split(r"\\") if row.strip()]
    return ", ".join(rows) if all("=" in row for row in rows) else system[0]


def _without_fonts(text: str) -> str:
    """The text without boxes, and without fonts but those around words."""
    opened, dropped = [], []
    for brace in OPENING.finditer(text):
        if brace[0] == "}" and opened:
            opening = opened.pop()
            held = text[opening.end() : brace.start()]
            words = opening["font"] and WRITTEN.fullmatch(held) and held.strip() not in ("", "e", "i")
            dropped += [] if len(opening[0]) == 1 or words else [opening.span(), brace.span()]
        elif brace[0] != r"\{" and brace[0].endswith("{"):
            opened.append(brace)
    kept, end = [], 0
    for begin, after in sorted(dropped):
        glued = COMMAND_ENDS.search(text, end, begin) and text[after : after + 1].isalpha()  # \pi\mathrm{i}
        kept.append(text[end:begin] + " " * bool(glued))
        end = after
    return "".join([*kept, text[end:]])


def without_label(text: str) -> str:
    """The text without the words that announce it ("The answer is", "Area ="), or the text where nothing else is."""
    for pattern in (LABEL, LEADING):
        text = pattern.sub("", text, count=1) if (found := pattern.match(text)) and found.end() < len(text) else text
    return text


def without_units(text: str) -> str:
    """The text without units behind its value; million and its like are multiplied, percent is %."""
    found = LAST_WORDS.fullmatch(text)
    if not found:
        return text
    value, words = found["value"], found["words"]
    symbols = len(re.findall(SYMBOLS, words))
    words = re.sub(SYMBOLS, " ", words)
    bare = WORD.findall(WRAPPED.sub(" ", words))
    wrapped = [word for part in WRAPPED.findall(words) for word in WORD.findall(part)]
    counts, apart = bool(PLAIN_NUMBER.fullmatch(value)), words[:1] == " "
    units = [_is_unit(word, counts, apart) for word in bare] + [_is_unit_in_font(word) for word in wrapped]
    units += [counts] * symbols
    if MEASURES.search(COMMAND.sub(" ", value)) or not units or not all(units) or words.count("(") != words.count(")"):
        return text
    for word in WORD.findall(WRAPPED.sub(r" \1 ", words)):
        value += rf"\times {MULTIPLIERS[word.lower()]}" if word.lower() in MULTIPLIERS else ""
        value += "%" if word.lower() in PERCENT else ""
    return value


def _is_unit(word: str, counts: bool, apart: bool) -> bool:
    """Whether a bare word behind a value is a unit. Behind a plain number (`counts`) that a space sets
    apart, any longer word is a thing that is counted, and a few letters are units."""
    if word in UNITS or word.lower() in MULTIPLIERS or word.lower() in PERCENT:
        return True
    return counts and apart and word.lower() not in NO_UNITS and (len(word) > 2 or word in LETTER_UNITS)


def _is_unit_in_font(word: str) -> bool:
    return word in LETTERS_IN_FONTS or word.lower() not in NO_UNITS and len(word) > 1


def _minutes(degrees: str, minutes: str, seconds: str | None) -> str:
    """22° 30' as a number of degrees."""
    value = Fraction(degrees) + Fraction(minutes) / 60 + Fraction(seconds or 0) / 3600
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}°"


def _repeating(whole: str, digits: str, period: str) -> str:
    r"""0.1\overline{6} as \frac{1}{6}."""
    value = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits)) + Fraction(f"0.{digits or 0}")
    value += int(whole or 0)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
