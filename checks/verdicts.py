"""What a check is, what it finds, and the one place where a check that fails is caught."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

Status = Literal["ok", "wrong", "slow", "failed", "out of memory", "not run"]
"""`wrong`: the numbers are; `slow`: less than the hardware should do; `failed`: an exception, a crash, or no end"""

BAD = ("wrong", "slow", "failed")
"""of which one makes the exit status 1; memory that does not suffice and what cannot run here are told, and no fault"""

MEMORY = "RESOURCE_EXHAUSTED"
"""how XLA's message begins where memory runs out"""


class Finding(NamedTuple):
    """What a check says of itself."""

    status: Status
    note: str
    """one line"""
    figures: Mapping[str, float | None] = MappingProxyType({})
    """by name with unit, as JSON has them"""


class Check(NamedTuple):
    """One line of the table, not run yet."""

    part: str
    """the table's section"""
    name: str
    run: Callable[[], Finding]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One line of the table."""

    part: str
    name: str
    status: Status
    note: str
    figures: dict[str, float | None] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    """that the check took, with what it compiled"""


def judge(check: Check) -> Verdict:
    """The check's verdict, whatever happens in it: an exception is one, and the next check runs."""
    start = time.perf_counter()
    try:
        finding = check.run()
    except Exception as error:  # noqa: BLE001 - the one boundary: what a check raises is what it found
        finding = _failure(error)
    seconds = time.perf_counter() - start
    return Verdict(check.part, check.name, finding.status, finding.note, dict(finding.figures), round(seconds, 2))


def _failure(error: Exception) -> Finding:
    first = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
    return Finding("out of memory" if _of_memory(error) else "failed", first[:300])


def _of_memory(error: BaseException | None) -> bool:
    """Of what it came from, too: the engine says in its own words that a cache does not fit."""
    return error is not None and (MEMORY in str(error) or _of_memory(error.__context__))


def not_here(reason: str) -> Callable[[], Finding]:
    """Of a check that cannot run on this machine."""
    return lambda: Finding("not run", reason)
