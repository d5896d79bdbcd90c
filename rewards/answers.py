"""Where in a completion the answer stands. Everything here takes time linear in the text, however it is made."""

import re
from typing import Any

BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
ANSWER_IS = re.compile(r"\banswer(?:\s+is\b|\s*:)[\s:*]*", re.IGNORECASE)
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


def boxed(text: str) -> tuple[int, str] | None:
    r"""Where the last \boxed{...} that closes begins, and what stands in it, braces inside braces included."""
    begin = text.find(r"\boxed")
    opened, last = [], None
    for brace in BRACES.finditer(text, begin) if begin >= 0 else ():
        if brace[0] == "{" or brace[0].startswith(r"\boxed"):
            opened.append((brace.start(), brace.end(), brace[0] != "{"))
        elif brace[0] == "}" and opened:
            start, end, is_box = opened.pop()
            if is_box and (last is None or start > last[0]):
                last = start, text[end : brace.start()].strip()
    return last


def hashed(text: str) -> tuple[int, str] | None:
    """Where the last #### stands, GSM8K's mark, and the rest of its line."""
    at = text.rfind("####")
    return None if at < 0 else (at, text[at + 4 :].partition("\n")[0].strip())


def tagged(text: str) -> tuple[int, str] | None:
    """Where the last <answer>...</answer> begins, and what stands in it."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else (start, text[start + len("<answer>") : end].strip())


def stated(text: str) -> tuple[int, str] | None:
    """Where the last "answer is ..." or "answer: ..." begins, and the rest of its line without stars and full stop."""
    begin = max(0, len(text) - TAIL)
    matches = list(ANSWER_IS.finditer(text, begin))
    if not matches:
        return None
    return matches[-1].start(), text[matches[-1].end() :].partition("\n")[0].strip(" \t\r*.")


def strict_answer(text: str) -> str | None:
    r"""What stands in the last \boxed{} or after the last ####, whichever is later in the text; None where neither is,
    or it holds nothing."""
    return _latest(boxed(text), hashed(text))


def marked_answer(text: str) -> str | None:
    r"""What the last of \boxed{}, #### and <answer></answer> holds; None where there is none."""
    return _latest(boxed(text), hashed(text), tagged(text))


def _latest(*found: tuple[int, str] | None) -> str | None:
    return max((each for each in found if each is not None), default=(0, ""))[1] or None


def find_answer(text: str, reference: str) -> str:
    r"""The answer: what the last of \boxed{}, <answer></answer>, #### and "answer is ..." holds; else, to a `reference`
    that is a number, the last number, and to others as many of the last lines as the reference has.

    Where the reference is a number, an answer that is one is written as the reference would be, without $ and commas,
    and of "answer is ..." the first number counts.
    """
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
    r"""The reference as a data set gives it, bare: what follows the last ####, or stands in the last \boxed{} of a
    whole solution, else the text itself. None where there is none."""
    if value is None:
        return None
    text = str(value)
    return strict_answer(text) or text.strip() or None
