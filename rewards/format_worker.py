"""In a process of its own: whether a regular expression matches, which can take forever."""

import re


def matches(pattern: str, match: str, text: str) -> float:
    """1.0 where `match` (fullmatch or search) of the pattern finds something, a dot being any character, else 0.0."""
    return float(getattr(re.compile(pattern, re.DOTALL), match)(text) is not None)
