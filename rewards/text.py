"""What a completion looks like: its format by a regular expression, its words, its length, how it repeats itself.

Lengths and repetition are counted in tokens, by the column `completion_ids`, which online training always gives.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from errors import InputError
from rewards.answers import completion_text
from rewards.contract import Reward, values_or_raise
from rewards.execution.processes import pool
from rewards.execution.sandbox import has_sandbox


def make_format(pattern: str, match: Literal["fullmatch", "search"] = "fullmatch", timeout: float = 5.0) -> Reward:
    r"""1.0 where the regular expression matches the whole completion, or with match="search" any part of it, else 0.0.

    A dot matches line ends, too. Matching happens in a process, `timeout` seconds a row, since a pattern like (a+)+b
    can take forever and Python lets nothing else run meanwhile; a completion that makes it do so does not match. In a
    flag, write r'\d+' rather than '\d+'.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"format: {pattern!r} is no regular expression ({error}); mend it") from None

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        calls = [(pattern, match, completion_text(completion)) for completion in completions]
        verifiers = pool("rewards.format_worker:matches", unsafe=not has_sandbox())
        return values_or_raise(verifiers.verdicts(calls, [(pattern, match, "")] * len(calls), timeout))

    return reward


def make_length(target: int) -> Reward:
    """-|length - target| / target, in tokens, and not below -1: 0 at the target, -1 for nothing or twice as much."""
    _check_positive("length", target=target)

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [max(-1.0, -abs(length - target) / target) for length in _lengths("length", columns)]

    return reward


def make_overlong(max_length: int, cache: int) -> Reward:
    """DAPO's soft overlong penalty (arXiv 2503.14476, equation 13), in tokens: 0 up to max_length - cache, then down in
    a line to -1 at max_length, and -1 beyond."""
    _check_positive("overlong", max_length=max_length, cache=cache)
    if cache > max_length:
        raise InputError(f"overlong: cache {cache} is more than max_length {max_length}; give a part of it")

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [max(-1.0, min(0.0, (max_length - cache - length) / cache)) for length in _lengths("overlong", columns)]

    return reward


def make_repetition(n: int = 4) -> Reward:
    """-(1 - different n-grams / all n-grams) of the tokens: 0 where none comes twice or there are fewer than n tokens,
    towards -1 where one token is repeated forever."""
    _check_positive("repetition", n=n)

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [_repetition(list(ids), n) for ids in _token_ids("repetition", columns)]

    return reward


def make_keywords() -> Reward:
    """1.0 where a completion has all words of its row's `keywords` (a list), each as the beginning of a word, in upper
    or lower case ("remember" is no Ember), else 0.0; None for a row without keywords."""

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        check_columns(columns)
        return [float(has_keywords(completion_text(completion), words)) if words else None
                for completion, words in zip(completions, columns["keywords"], strict=True)]

    def check_columns(columns: Any) -> None:
        if "keywords" not in columns:
            raise InputError(f"keywords: the rows have no column 'keywords', only {', '.join(sorted(columns))}")

    reward.check_columns = check_columns
    return reward


def has_keywords(text: str, words: Sequence[str]) -> bool:
    return all(re.search(rf"(?<!\w){re.escape(word)}", text, re.IGNORECASE) for word in words)


def _repetition(ids: list[int], n: int) -> float:
    grams = list(zip(*(ids[start:] for start in range(n))))
    return len(set(grams)) / len(grams) - 1.0 if grams else 0.0


def _lengths(name: str, columns: dict[str, Any]) -> list[int]:
    return [len(ids) for ids in _token_ids(name, columns)]


def _token_ids(name: str, columns: dict[str, Any]) -> Any:
    if "completion_ids" not in columns:
        raise InputError(f"{name}: the column 'completion_ids' is missing, by which this reward counts tokens")
    return columns["completion_ids"]


def _check_positive(name: str, **numbers: Any) -> None:
    for key, number in numbers.items():
        if type(number) is not int or number < 1:
            raise InputError(f"{name}: {key} is {number!r}; give a whole number of tokens, 1 or more")
