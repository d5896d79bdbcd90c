"""Grading in several processes: each grades its share of the groups, and all get the values of all."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from errors import CommonError, InputError
from rewards.scoring import Failure, Scored
from sharding.exchange import gather
from sharding.hosts import warn

LONG_WAIT = 10.0
"""seconds for which others wait for a process's rewards without a word"""

Graded = tuple[int, Scored]
"""a group's number and what it is worth"""


def in_share(group: int) -> bool:
    """Whether this process grades the group of this number."""
    return group % jax.process_count() == jax.process_index()


def gather_graded(own: Iterable[Graded]) -> list[Graded]:
    """What all processes graded, by group; waits for each of them. An InputError of one is a CommonError of all."""
    start = time.perf_counter()
    found: dict[str, Any] = {"graded": [], "error": None}
    try:
        found["graded"] = [(number, vars(scored)) for number, scored in own]
    except InputError as error:
        found["error"] = str(error)
    parts = gather(found | {"seconds": time.perf_counter() - start})
    _warn_of_waiting([part["seconds"] for part in parts])
    for process, part in enumerate(parts):
        if part["error"]:
            raise CommonError(f"process {process}: {part['error']}")
        _warn_of_late(process, [scored["timeouts"] for _, scored in part["graded"]])
    return sorted(((number, _scored(**each)) for part in parts for number, each in part["graded"]),
                  key=lambda graded: graded[0])


def _scored(failures: Sequence[Any], **rest: Any) -> Scored:
    return Scored(**rest, failures=[Failure(*each) for each in failures])


def _warn_of_waiting(seconds: Sequence[float]) -> None:
    """Where all but one process were done long before."""
    *others, longest = sorted(seconds)
    if others and longest - others[-1] > LONG_WAIT:
        warn(f"all waited for the rewards of process {seconds.index(longest)}: {longest:.0f} s after sampling, the "
             f"others' took {others[-1]:.0f} s at most")


def _warn_of_late(process: int, timeouts: Sequence[dict[str, int]]) -> None:
    for name in dict.fromkeys(name for each in timeouts for name in each):
        count = sum(each.get(name, 0) for each in timeouts)
        if count:
            warn(f"process {process}: reward {name} had no time for {count} rows, which have no verdict")
