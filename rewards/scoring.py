"""All rewards of a batch of completions: each bounded in time, each by its own name, nothing silently 0.

0.0 is a verdict; None says that a reward has none for a row, which leaves that reward out of the row's sum; an
exception or a timeout is neither, so the row has no total at all, is counted, and logged with its error.
"""

import asyncio
import dataclasses
import inspect
import math
import numbers
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from errors import InputError
from rewards.answers import completion_text
from rewards.contract import RowErrors, given_seconds
from rewards.registry import Weighted

HEAD = 200
"""characters of a completion in the record of a failure"""
GRACE = 1.0
"""seconds that a reward which minds its time has, after that, to hand over what it has"""


class Failure(NamedTuple):
    """A reward that failed on a row; `row` is None where it failed on all of them together and on none alone."""

    reward: str
    row: int | None
    error: str
    completion: str
    """the beginning of it"""


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a batch of completions is worth."""

    values: dict[str, list[float | None]]
    """by reward, a value a row; None where it returned that or failed"""
    totals: list[float | None]
    """a row: sum of weight * value over the rewards that have one; None where none of those with a weight has, and
    where one of them failed"""
    exceptions: dict[str, int]
    """by reward, how many rows it failed on"""
    timeouts: dict[str, int]
    """by reward, how many rows it had no time for; not among the exceptions"""
    failures: list[Failure]
    """each of either, for a log"""


class Outcome(NamedTuple):
    """Of one reward: values, and errors by row (None: of the batch as a whole)."""

    values: list[float | None]
    errors: dict[int | None, BaseException]


def compute_rewards(rewards: Sequence[Weighted], prompts: Sequence[Any], completions: Sequence[Any],
                    columns: Mapping[str, Any], timeout: float) -> Scored:
    """Asks the rewards one after the other, functions and coroutine functions, `timeout` seconds each.

    One that raises is called again row by row, within its time, to find out which rows fail. One that is not done in
    time is left to itself (Python cannot end a thread): the rows that it did are lost with it, unless it raised
    RowErrors. Raises InputError, naming reward and row, for a number of values that is not that of the rows, for what
    is no number, for NaN and infinity; and what a reward itself raises as InputError.
    """
    rows = len(completions)
    for each in rewards:
        _check_signature(each, prompts, completions, columns)
    outcomes = {each.name: _bounded(each, prompts, completions, columns, timeout) for each in rewards}
    totals = [_total(rewards, outcomes, row) for row in range(rows)]
    late = {name: sum(isinstance(error, TimeoutError) for error in outcome.errors.values())
            for name, outcome in outcomes.items()}
    return Scored({name: outcome.values for name, outcome in outcomes.items()}, totals,
                  {name: len(outcome.errors) - late[name] for name, outcome in outcomes.items()}, late,
                  [_failure(name, row, error, completions)
                   for name, outcome in outcomes.items() for row, error in outcome.errors.items()])


def _check_signature(reward: Weighted, prompts: Sequence[Any], completions: Sequence[Any],
                     columns: Mapping[str, Any]) -> None:
    """Raises InputError for a function that cannot be called like this on any row."""
    try:
        inspect.signature(reward.function).bind(prompts=prompts, completions=completions, **columns)
    except TypeError as error:
        raise InputError(f"reward {reward.name}: cannot be called with the columns {', '.join(columns)} ({error}); let "
                         f"it take (prompts, completions, **columns)") from None


def _total(rewards: Sequence[Weighted], outcomes: Mapping[str, Outcome], row: int) -> float | None:
    """None where a reward with a weight failed on the row: what is left of the sum would be another reward. One of
    weight 0 is only looked at: it makes no total, and takes none away."""
    counted = [(each.weight, outcomes[each.name]) for each in rewards if each.weight]
    if any(row in outcome.errors for _, outcome in counted):
        return None
    parts = [weight * outcome.values[row] for weight, outcome in counted if outcome.values[row] is not None]
    return math.fsum(parts) if parts else None


def _failure(name: str, row: int | None, error: BaseException, completions: Sequence[Any]) -> Failure:
    head = "" if row is None else completion_text(completions[row])[:HEAD]
    return Failure(name, row, " ".join(f"{type(error).__name__}: {error}".split())[:500], head)


def _bounded(reward: Weighted, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any],
             timeout: float) -> Outcome:
    """In a thread, which ends with the process if not before."""
    done: Future = Future()

    def work() -> None:
        try:
            with given_seconds(timeout):
                done.set_result(_outcome(reward, prompts, completions, columns, time.monotonic() + timeout))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            done.set_exception(error)

    threading.Thread(target=work, name=f"reward {reward.name}", daemon=True).start()
    try:
        return done.result(min(timeout + GRACE, threading.TIMEOUT_MAX))
    except TimeoutError:
        if done.done():  # just now, or with a TimeoutError of its own
            return done.result()
        late = TimeoutError(f"not done within {timeout:g} s")
        return Outcome([None] * len(completions), dict.fromkeys(range(len(completions)), late))


def _outcome(reward: Weighted, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any],
             deadline: float) -> Outcome:
    try:
        return Outcome(_call(reward, prompts, completions, columns, deadline), {})
    except InputError:
        raise
    except RowErrors as failed:
        return Outcome(_checked(reward.name, failed.values, len(completions)), dict(failed.errors))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything
        values, errors = _row_by_row(reward, prompts, completions, columns, deadline)
        return Outcome(values, errors or {None: error})


def _row_by_row(reward: Weighted, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any],
                deadline: float) -> Outcome:
    outcome = Outcome([None] * len(completions), {})
    for row in range(len(completions)):
        try:
            if time.monotonic() > deadline:
                raise TimeoutError("no time left to ask for this row alone")
            own = {name: column[row : row + 1] if _is_column(column, len(completions)) else column
                   for name, column in columns.items()}
            one = slice(row, row + 1)
            outcome.values[row] = _call(reward, prompts[one], completions[one], own, deadline, row)[0]
        except InputError:
            raise
        except RowErrors as failed:
            outcome.errors[row] = next(iter(failed.errors.values()))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything
            outcome.errors[row] = error
    return outcome


def _is_column(column: Any, rows: int) -> bool:
    return hasattr(column, "__len__") and not isinstance(column, str | bytes | Mapping) and len(column) == rows


def _call(reward: Weighted, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any],
         deadline: float, first: int = 0) -> list[float | None]:
    """The values for these rows, the first of which is row `first` of the batch."""
    given = reward.function(prompts=prompts, completions=completions, **columns)
    if inspect.isawaitable(given):
        given = asyncio.run(_wait_for(given, deadline))
    return _checked(reward.name, given, len(completions), first)


async def _wait_for(given: Any, deadline: float) -> Any:
    return await asyncio.wait_for(given, max(0.0, deadline - time.monotonic()))


def _checked(name: str, given: Any, rows: int, first: int = 0) -> list[float | None]:
    """The values as floats and None. Raises InputError for anything else, and for too many or too few."""
    if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__len__"):
        raise InputError(f"reward {name}: gave {type(given).__name__}, not a list with a value a row")
    if len(given) != rows:
        raise InputError(f"reward {name}: gave {len(given)} values for {rows} rows; one a row, None to leave one out")
    return [_number(name, row, value) for row, value in enumerate(given, first)]


def _number(name: str, row: int, value: Any) -> float | None:
    """Numbers of numpy and jax, and arrays of one, are numbers."""
    if value is None:
        return None
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise InputError(f"reward {name}: gave {value!r} for row {row} of the batch; give a finite number, or None to "
                         f"leave the row out")
    return float(value)
