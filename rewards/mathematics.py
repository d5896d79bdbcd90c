r"""Mathematics: whether the answer is right, by math-verify, and whether it is given where answers belong.

Much of what a small model gains is the format alone, so there are three rewards to tell that apart: `math` takes the
answer wherever it can be found, `math_strict` only in \boxed{} or after ####, and `math_format` looks at nothing but
whether there is an answer in such a place. The reference is the column `answer`, else `solution`, from which GSM8K's
"...#### x" and a solution's \boxed{x} are taken as x; a row without one is left out (None).
"""

import importlib.util
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from errors import InputError
from rewards.answers import TAIL, after_thought, clean_reference, completion_text, marked_answer, strict_answer
from rewards.contract import Reward, values_or_raise
from rewards.execution.processes import pool
from rewards.execution.sandbox import has_sandbox

PLAIN = re.compile(r"[A-Za-z0-9\s\\{}^*/+\-=<>()\[\].,;:|!$%&°√π×÷−–≤≥∞½¼¾²³]*")
FUNCTIONS = "sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|abs|min|max|gcd|lcm"
CALL = re.compile(rf"(?<![A-Za-z\\])(?!(?:{FUNCTIONS})\b)[A-Za-z]{{2,}}\s*\(")
ATTRIBUTE = re.compile(r"[A-Za-z)\]]\s*\.\s*[A-Za-z]")
PLAIN_LENGTH = 300
LONGEST = 2000
"""characters of an answer; what is longer is wrong, since reading it can take minutes"""
WORKER = "rewards.math_worker:same_answer"


def make_math(timeout: float = 5.0) -> Reward:
    r"""1.0 for the right answer, 0.0 for another or none. The answer is what the last of \boxed{}, <answer></answer>
    and #### holds, else what the completion's end says ("the answer is ...", the last formula or number).

    `timeout` seconds a row, of the CPU's time; an answer that takes longer, or that the check cannot read, is wrong. It
    is checked in the sandbox, or without one as far as `is_plain` goes, with a warning. The reward raises RowErrors
    where a reference cannot be read.
    """
    return _make_reward(_lenient, timeout)


def make_math_strict(timeout: float = 5.0) -> Reward:
    r"""1.0 for the right answer in the last \boxed{} or after the last ####, whichever comes later, else 0.0."""
    return _make_reward(_strict, timeout)


def make_math_format() -> Reward:
    r"""1.0 where something stands in a \boxed{} or after ####, right or wrong, else 0.0."""

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [float(strict_answer(completion_text(completion)) is not None) for completion in completions]

    return reward


def _make_reward(read: Callable[[str], tuple[str, bool] | None], timeout: float) -> Reward:
    if importlib.util.find_spec("math_verify") is None:
        raise InputError("rewards of mathematics need math-verify; pip install math-verify[antlr4-13-2]")
    sandboxed = has_sandbox()
    if not sandboxed:
        warnings.warn(f"no sandbox of bubblewrap can be had here, so mathematics is read without one: an answer of "
                      f"more than {PLAIN_LENGTH} characters, or of others than plain mathematics has, counts as wrong",
                      stacklevel=2)

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        rows = list(zip(_references(columns), (read(completion_text(each)) for each in completions), strict=True))
        calls = {row: (reference, *answer) for row, (reference, answer) in enumerate(rows)
                 if reference and answer and (sandboxed or is_plain(answer[0]))}
        stored = [(call[0], "0", True) for call in calls.values()]  # the reference, and an answer that all can read
        found = pool(WORKER, unsafe=not sandboxed).verdicts(list(calls.values()), stored, timeout)
        verdicts = dict(zip(calls, found, strict=True))
        return values_or_raise([verdicts.get(row, 0.0) if reference else None
                                for row, (reference, _) in enumerate(rows)])

    reward.check_columns = _references
    return reward


def is_plain(text: str) -> bool:
    """Whether a text may be read without a sandbox: short, of the characters of mathematics, without quotes and
    underscores, in which no word but a function's is called and nothing is taken from an object."""
    return len(text) <= PLAIN_LENGTH and all((PLAIN.fullmatch(text), not CALL.search(text), not ATTRIBUTE.search(text)))


def _lenient(text: str) -> tuple[str, bool] | None:
    answer = marked_answer(text)
    return (after_thought(text)[-TAIL:], False) if answer is None else _bounded(answer)


def _strict(text: str) -> tuple[str, bool] | None:
    answer = strict_answer(text)
    return None if answer is None else _bounded(answer)


def _bounded(answer: str) -> tuple[str, bool] | None:
    return (answer, True) if len(answer) <= LONGEST else None


def _references(columns: dict[str, Any]) -> list[str | None]:
    name = next((name for name in ("answer", "solution") if name in columns), None)
    if name is None:
        raise InputError(f"the rows have no column 'answer' or 'solution' to check mathematics against, only "
                         f"{', '.join(sorted(columns))}; rename one with the data's columns")
    return [clean_reference(value) for value in columns[name]]
