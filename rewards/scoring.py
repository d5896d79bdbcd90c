"""All rewards of a batch of completions: each bounded in time, each by its own name, nothing silently 0.

0.0 is a verdict; None says that a reward has none for a row, which leaves that reward out of the row's sum; an
exception or a timeout is neither, so the row has no total at all, is counted, and logged with its error.

A reward that is late is given up. A coroutine is cancelled, and what minds its time_left() (graders of ours, judges,
reward models) stops by itself; a plain function that does neither cannot be ended (it is Python in a thread): what it
returns is ignored, and a warning names it.
"""

import asyncio
import dataclasses
import functools
import inspect
import math
import numbers
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from typing import Any, NamedTuple

from errors import InputError
from rewards.answers import completion_text
from rewards.contract import RowErrors, given_seconds, time_left
from rewards.registry import Weighted

HEAD = 200
"""characters of a completion in the record of a failure"""
GRACE = 1.0
"""seconds that a reward which minds its time has, after that, to hand over what it has"""
LOOKS = 0.1
"""seconds between looks at whether a coroutine has time left"""


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


class Rows(NamedTuple):
    """What a reward is asked about; `names` say in messages which row is meant."""

    prompts: Sequence[Any]
    completions: Sequence[Any]
    columns: Mapping[str, Any]
    names: Sequence[str]

    def alone(self, row: int) -> "Rows":
        """That row, as a batch of its own."""
        one = slice(row, row + 1)
        columns = {name: column[one] if _is_column(column, len(self.completions)) else column
                   for name, column in self.columns.items()}
        return Rows(self.prompts[one], self.completions[one], columns, self.names[one])


class Outcome(NamedTuple):
    """Of one reward: values, and errors by row (None: of the batch as a whole)."""

    values: list[float | None]
    errors: dict[int | None, BaseException]


def compute_rewards(rewards: Sequence[Weighted], prompts: Sequence[Any], completions: Sequence[Any],
                    columns: Mapping[str, Any], timeout: float) -> Scored:
    """What ask() and add_up() make of a batch."""
    rows = Rows(prompts, completions, columns, [f"row {row} of the batch" for row in range(len(completions))])
    return add_up(rewards, ask(rewards, rows, timeout, Future()), completions)


def ask(rewards: Sequence[Weighted], rows: Rows, timeout: float, stop: Future) -> dict[str, Outcome]:
    """Asks the rewards one after the other, functions and coroutine functions, `timeout` seconds each; by name.

    One that raises is called again row by row, within its time, to find out which rows fail. One that is not done in
    time is given up: the rows that it did are lost with it, unless it raised RowErrors. Raises InputError, naming
    reward and row, for a number of values that is not that of the rows, for what is no number, for NaN and infinity;
    and what a reward itself raises as InputError. Raises CancelledError as soon as `stop` is done.
    """
    for each in rewards:
        _check_signature(each, rows.columns)
    return {each.name: _ask_one(each, rows, timeout, stop) for each in rewards}


def _ask_one(reward: Weighted, rows: Rows, timeout: float, stop: Future) -> Outcome:
    if stop.done():
        raise CancelledError
    return (_here if getattr(reward.function, "on_device", False) else _bounded)(reward, rows, timeout, stop)


def add_up(rewards: Sequence[Weighted], outcomes: Mapping[str, Outcome], completions: Sequence[Any]) -> Scored:
    """Values, totals and failures of the rows; outcomes are by name, of every reward."""
    outcomes = {each.name: outcomes[each.name] for each in rewards}
    late = {name: sum(isinstance(error, TimeoutError) for error in outcome.errors.values())
            for name, outcome in outcomes.items()}
    return Scored({name: outcome.values for name, outcome in outcomes.items()},
                  [_total(rewards, outcomes, row) for row in range(len(completions))],
                  {name: len(outcome.errors) - late[name] for name, outcome in outcomes.items()}, late,
                  [_failure(name, row, error, completions)
                   for name, outcome in outcomes.items() for row, error in outcome.errors.items()])


def _check_signature(reward: Weighted, columns: Mapping[str, Any]) -> None:
    """Raises InputError for a function that cannot be called like this on any row."""
    try:
        inspect.signature(reward.function).bind(prompts=[], completions=[], **columns)
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


def _here(reward: Weighted, rows: Rows, timeout: float, stop: Future) -> Outcome:
    """In this thread: when it is over, nothing of it goes on."""
    with given_seconds(timeout, stop.done):
        return _outcome(reward, rows)


def _bounded(reward: Weighted, rows: Rows, timeout: float, stop: Future) -> Outcome:
    """In a thread, which ends with the process if not before."""
    done: Future = Future()

    def work() -> None:
        try:
            done.set_result(_here(reward, rows, timeout, stop))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            done.set_exception(error)

    threading.Thread(target=work, name=f"reward {reward.name}", daemon=True).start()
    wait([done, stop], min(timeout + GRACE, threading.TIMEOUT_MAX), FIRST_COMPLETED)
    if stop.done():
        raise CancelledError
    if done.done():
        return done.result()
    _warn_of_thread(reward.name, timeout)
    late = TimeoutError(f"not done within {timeout:g} s")
    return Outcome([None] * len(rows.completions), dict.fromkeys(range(len(rows.completions)), late))


@functools.cache
def _warn_of_thread(name: str, timeout: float) -> None:
    """Once each."""
    print(f"warning: reward {name} was not done within {timeout:g} s, and a function in a thread cannot be ended: it "
          f"goes on until it returns, and what it returns is ignored; let it look at rewards.contract.time_left(), or "
          f"make it a coroutine function", file=sys.stderr)


def _outcome(reward: Weighted, rows: Rows) -> Outcome:
    try:
        return Outcome(_call(reward, rows), {})
    except InputError:
        raise
    except RowErrors as failed:
        return Outcome(_checked(reward.name, failed.values, rows.names), dict(failed.errors))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything
        values, errors = _row_by_row(reward, rows)
        return Outcome(values, errors or {None: error})


def _row_by_row(reward: Weighted, rows: Rows) -> Outcome:
    outcome = Outcome([None] * len(rows.completions), {})
    for row in range(len(rows.completions)):
        try:
            if time_left() < 0:
                raise TimeoutError("no time left to ask for this row alone")
            outcome.values[row] = _call(reward, rows.alone(row))[0]
        except InputError:
            raise
        except RowErrors as failed:
            outcome.errors[row] = next(iter(failed.errors.values()))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything
            outcome.errors[row] = error
    return outcome


def _is_column(column: Any, rows: int) -> bool:
    return hasattr(column, "__len__") and not isinstance(column, str | bytes | Mapping) and len(column) == rows


def _call(reward: Weighted, rows: Rows) -> list[float | None]:
    given = reward.function(prompts=rows.prompts, completions=rows.completions, **rows.columns)
    if inspect.isawaitable(given):
        given = asyncio.run(_in_time(given))
    return _checked(reward.name, given, rows.names)


async def _in_time(given: Any) -> Any:
    """Raises TimeoutError when there is no time left; asyncio.run then cancels what was waited for."""
    task = asyncio.ensure_future(given)
    while not task.done():
        if time_left() <= 0:
            raise TimeoutError("not done in time, and cancelled")
        await asyncio.wait({task}, timeout=min(LOOKS, time_left()))
    return task.result()


def _checked(name: str, given: Any, rows: Sequence[str]) -> list[float | None]:
    """The values as floats and None. Raises InputError for anything else, and for too many or too few."""
    if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__len__"):
        raise InputError(f"reward {name}: gave {type(given).__name__}, not a list with a value a row")
    if len(given) != len(rows):
        raise InputError(f"reward {name}: gave {len(given)} values for {len(rows)} rows; one a row, None to leave one "
                         f"out")
    return [_number(name, row, value) for row, value in zip(rows, given)]


def _number(name: str, row: str, value: Any) -> float | None:
    """Numbers of numpy and jax, and arrays of one, are numbers."""
    if value is None:
        return None
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise InputError(f"reward {name}: gave {value!r} for {row}; give a finite number, or None to leave the row out")
    return float(value)
