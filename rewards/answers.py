"""Where in a completion the answer stands. Everything here takes time linear in the text, however it is made."""

import math
import re
from typing import Any

BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\\\(?![a-z])|\\[{}]|[{}]")
THOUGHT = re.compile(r"</(?:\w+:)?think(?:ing)?>|</thoughts?>|</reasoning>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
                     r"|<\|channel\|>final<\|message\|>", re.IGNORECASE)
HASHED = re.compile(r"^.*####(.*)$", re.MULTILINE)
TAG = re.compile(r"<(/?)(?:final_?)?answer>", re.IGNORECASE)
JOINED = re.compile(r"[$\s}]*(?:,|,?\s*\band\b|,?\s*\bor\b)[$\s]*(?:[A-Za-z]\w?\s*=\s*)?")
"""what stands between boxes that hold one answer together"""
STEP = re.compile(r"[^\w\n]*(?:step|part|case|section|chapter|phase|stage|method|approach|question|problem|example)"
                  r"\s*(?:\d+|[ivx]+|[a-z])\b[.:)]?", re.IGNORECASE)
ANSWER_IS = re.compile(r"\banswer(?:\s+is\b|\**\s*:)[\s:*]*", re.IGNORECASE)
HEADING = re.compile(r"(?:[^\x00-\x7f\w]+\s*)?(?:[^\W\d_]{2}|\(?\w{1,2}[.):]\s+[^\W\d_(*]|\(?[^\W\d_]\)\s+[^\W\d_]{2})")
"""how the line behind #### begins where it is a heading: a word, or a number or letter with a full stop and words"""
NUMBER = re.compile(r"(?:(?<!\d)-)?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")
WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\{([^{}]*)\}")
TAIL = 4000
"""characters at the end of a completion among which an answer that nothing marks is looked for"""


def completion_text(completion: Any) -> str:
    """The completion's text: the string, or the content of the last message, whose parts of text are joined."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content or ""


def after_thought(text: str) -> str:
    """What stands behind the last </think>; the whole text where that has neither letter nor digit."""
    ends = [thought.end() for thought in THOUGHT.finditer(text)]
    behind = text[ends[-1] :] if ends else ""
    return behind if any(map(str.isalnum, behind)) else text


def boxed(text: str) -> tuple[int, str] | None:
    r"""Where the last \boxed{...} or \fbox{...} that closes begins, and what stands in it, braces inside included; of
    boxes that "and", "or" or a comma joins, what stands in all of them."""
    last, held, end = None, [], 0
    for start, begin, close in _boxes(text):
        joins = last is not None and begin - end < 40 and JOINED.fullmatch(text, end, start)
        held = [*(held if joins else []), text[begin:close].strip()]
        last, end = start, close + 1
    return None if last is None else (last, ", ".join(dict.fromkeys(held)))


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """Where each box that closes and has no box inside begins, where what it holds begins, and where that ends."""
    opened, found = [], []
    for brace in BRACES.finditer(text) if r"\boxed" in text or r"\fbox" in text else ():
        if brace[0] == "{" or brace[0].startswith((r"\boxed", r"\fbox")):
            opened.append((brace.start(), brace.end(), brace[0] != "{"))
        elif brace[0] == "}" and opened:
            start, begin, is_box = opened.pop()
            if is_box and (not found or start > found[-1][0]):
                found.append((start, begin, brace.start()))
    return found


def hashed(text: str) -> tuple[int, str] | None:
    """Where the last #### stands, GSM8K's mark, and the rest of its line. What reads like a heading is none, but for
    "answer is" and "answer:", and for words at the end of a text that has nothing else."""
    lines = [(line.start(1) - 4, line[1].strip(" \t\r*"), line.end()) for line in HASHED.finditer(text)]
    for at, answer, _ in reversed(lines):
        named = ANSWER_IS.search(answer[:100])
        if named or not (HEADING.match(answer) or STEP.match(answer)):
            return at, answer[named.end() :] if named else answer
    ends = lines and not text[lines[-1][2] :].strip() and boxed(text) is None and not STEP.match(lines[-1][1])
    return lines[-1][:2] if ends else None


def tagged(text: str) -> tuple[int, str] | None:
    """Where the last <answer>...</answer> begins, and what stands in it; where none closes, what follows the tag."""
    found, opening = None, None
    for tag in TAG.finditer(text):
        if not tag[1]:
            opening = tag
        elif opening:
            found, opening = (opening.start(), text[opening.end() : tag.start()].strip()), None
    return found if found or not opening else (opening.start(), text[opening.end() :].strip())


def stated(text: str) -> tuple[int, str] | None:
    """Where the last "answer is ..." or "answer: ..." begins, and the rest of its line without stars and full stop."""
    begin = max(0, len(text) - TAIL)
    matches = list(ANSWER_IS.finditer(text, begin))
    if not matches:
        return None
    return matches[-1].start(), text[matches[-1].end() :].partition("\n")[0].strip(" \t\r*").rstrip(" *.")


def strict_answer(text: str) -> str | None:
    r"""What stands in the last \boxed{} or after the last ####, whichever is later in the text; None where neither is,
    or it holds nothing. Here and below, text behind </think> counts before text inside."""
    text = after_thought(text)
    return _latest(boxed(text), hashed(text))


def marked_answer(text: str) -> str | None:
    r"""What the last of \boxed{}, #### and <answer></answer> holds; None where there is none."""
    text = after_thought(text)
    return _latest(boxed(text), hashed(text), tagged(text))


def _latest(*found: tuple[int, str] | None) -> str | None:
    return max((each for each in found if each is not None), default=(0, ""))[1] or None


def find_answer(text: str, reference: str) -> str:
    r"""The answer: what the last of \boxed{}, <answer></answer>, #### and "answer is ..." holds; else, to a `reference`
    that is a number, the last number, and to others as many of the last lines as the reference has.

    Where the reference is a number, an answer that is one is written as the reference would be, without $ and commas,
    and of "answer is ..." the first number counts.
    """
    text = after_thought(text)
    wants_number = as_number(reference) is not None
    marks, statement = [boxed(text), hashed(text), tagged(text)], stated(text)
    found = _latest(*marks, statement)
    if found is not None and found == _latest(*marks):
        answer = unwrap(found)
        return (as_number(answer) or answer) if wants_number else answer
    return _unmarked(found or text[-TAIL:], wants_number, reference, bool(found))


def _unmarked(text: str, wants_number: bool, reference: str, spoken: bool) -> str:
    numbers = [each[0] for each in NUMBER.finditer(text)] if wants_number else []
    if numbers:
        return as_number(numbers[0 if spoken else -1]) or ""
    if spoken:
        return text
    lines = text.strip().splitlines()
    return "\n".join(lines[-max(1, len(reference.strip().splitlines())) :])


def as_number(text: str) -> str | None:
    """A number without $ and thousands separators; None for what is more or less than a number."""
    text = text.strip().strip("$").rstrip(".")
    return text.replace(",", "").replace("$", "") if NUMBER.fullmatch(text) else None


def unwrap(text: str) -> str:
    r"""What \text{...} and its like hold, where the text is nothing else; $...$ likewise."""
    text = text.strip()
    text = text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == "$" else text
    wrapped = WRAPPED.fullmatch(text)
    return wrapped[1].strip() if wrapped else text


def clean_reference(value: Any) -> str | None:
    r"""The reference as a data set gives it, bare: what the last of ####, \boxed{} and <answer></answer> of a whole
    solution holds, else what "answer is ..." says there, else the text itself. None where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):  # a table's word for none, too
        return None
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return marked_answer(text) or (stated(text) or (0, ""))[1] or after_thought(text).strip() or None
