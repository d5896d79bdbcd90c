"""All rewards of a batch of completions: each bounded in time, each by its own name, nothing silently 0.

0.0 is a verdict; None says that a reward has none for a row, which leaves that reward out of the row's sum; an
exception or a timeout is neither, so the row has no total at all, is counted, and logged with its error.

A reward that is late is given up. A coroutine is cancelled, and what minds its time_left() (graders of ours, judges,
reward models) stops by itself and keeps the rows that it did. A plain function that does neither is ended at its next
step of Python (rewards.calls), what it returns is ignored, and a warning names it. Shortly before that it is asked for
each row alone, so that one slow row takes no value from the others.
"""

import asyncio
import dataclasses
import functools
import inspect
import math
import numbers
import traceback
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

from errors import InputError, place_of, shown
from rewards.answers import completion_text
from rewards.calls import Call, GivenUp, running, undone, wait_for_one, warn_of_late
from rewards.contract import Clock, RowErrors, on_clock
from rewards.registry import Weighted

HEAD = 200
"""characters of a completion in the record of a failure"""
TRACEBACK = 2000
"""and of its traceback"""
GRACE = 1.0
"""seconds that a reward which minds its time has, after that, to hand over what it has"""
LOOKS = 0.1
"""seconds between looks at what there is to wait for"""
PATIENCE = 0.8
"""share of its time after which a call that does not mind it is asked for each row alone, beside it"""
AT_ONCE = 16
"""rows that are asked alone at the same time"""
NEVER_ENDING = 64
"""calls of a reward that were given up and go on, beside which no more rows are asked alone"""


LARGEST = 1e30
"""of a reward, and of a row's sum: its square is finite in float64, and the reward in float32"""


def is_reward(value: Any) -> bool:
    """Whether it is a number that rewards may have."""
    return isinstance(value, numbers.Real) and -LARGEST <= value <= LARGEST


class Failure(NamedTuple):
    """A reward that failed on a row; `row` is None where it failed on all of them together and on none alone."""

    reward: str
    row: int | None
    error: str
    completion: str
    """the beginning of it"""
    traceback: str = ""
    """the end of the exception's"""


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

    One that raises is called again row by row, within its time, to find out which rows fail, and one that is nearly
    out of time, to find out which are slow. Raises InputError, naming reward and row, for a number of values that is
    not that of the rows, for what is no number, for NaN and infinity; and what a reward itself raises as InputError.
    Raises CancelledError as soon as `stop` is done.
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


def check_columns(rewards: Sequence[Weighted], names: Iterable[str]) -> None:
    """Raises InputError for a reward that rows with these columns, in some or all of them, are not enough for: by its
    signature, or by what it says itself (`check_columns` of the function, which takes columns)."""
    columns: dict[str, list[Any]] = {name: [] for name in (*names, "completion_ids")}
    for each in rewards:
        _check_signature(each, columns)
        getattr(each.function, "check_columns", lambda columns: None)(columns)


def _check_signature(reward: Weighted, columns: Mapping[str, Any]) -> None:
    """Raises InputError for a function that cannot be called like this on any row."""
    try:
        inspect.signature(reward.function).bind(prompts=[], completions=[], **columns)
    except TypeError as error:
        raise InputError(f"reward {reward.name}: cannot be called with the columns {', '.join(columns)} ({error}); let "
                         f"it take (prompts, completions, **columns); a column of another name is renamed by "
                         f"--data FILE[NAME=THEIRS]") from None


def _total(rewards: Sequence[Weighted], outcomes: Mapping[str, Outcome], row: int) -> float | None:
    """None where a reward with a weight failed on the row: what is left of the sum would be another reward. One of
    weight 0 is only looked at: it makes no total, and takes none away."""
    counted = [(each.weight, outcomes[each.name]) for each in rewards if each.weight]
    if any(row in outcome.errors for _, outcome in counted):
        return None
    parts = [weight * outcome.values[row] for weight, outcome in counted if outcome.values[row] is not None]
    if not all(map(is_reward, parts)):
        raise InputError(f"rewards times their weights give {shown(parts)}, which is no finite number or above "
                         f"{LARGEST:g}; lower the weights")
    return math.fsum(parts) if parts else None


def _failure(name: str, row: int | None, error: BaseException, completions: Sequence[Any]) -> Failure:
    head = "" if row is None else completion_text(completions[row])[:HEAD]
    where = "" if isinstance(error, TimeoutError) else "".join(traceback.format_exception(error))[-TRACEBACK:]
    return Failure(name, row, " ".join(f"{type(error).__name__}: {error}".split())[:500], head, where)


def _here(reward: Weighted, rows: Rows, timeout: float, stop: Future) -> Outcome:
    """In this thread: when it is over, nothing of it goes on."""
    clock = Clock(timeout, stop.done)
    with on_clock(clock):
        return _outcome(reward, rows, clock)


def _bounded(reward: Weighted, rows: Rows, timeout: float, stop: Future) -> Outcome:
    """In threads: all rows at once, and each alone where that takes too long."""
    whole = Call(reward.name, lambda clock: _outcome(reward, rows, clock), timeout, stop)
    single: list[Call] = []
    try:
        wait_for_one(PATIENCE * timeout, [whole.done, stop])
        if len(rows.completions) > 1 and not whole.clock.minded:
            _ask_alone(reward, rows, whole, stop, single)
        alone = [call.done for call in single]
        end = Clock(whole.clock.left() + GRACE, lambda: whole.done.done() or stop.done())
        while end.left() > 0 and sum(map(_answered, alone)) < len(rows.completions):
            wait_for_one(end.left(), [whole.done, stop, *undone(alone)])
        if stop.done():
            raise CancelledError
        return _filled(whole.done.result() if whole.done.done() else _given_up(reward, rows, timeout), alone)
    finally:
        for call in (whole, *single):
            call.give_up()


def _answered(row: Future) -> bool:
    return row.done() and not isinstance(row.result(), TimeoutError)


def _given_up(reward: Weighted, rows: Rows, timeout: float) -> Outcome:
    warn_of_late(reward.name)
    late = TimeoutError(f"not done within {timeout:g} s")
    return _sorted_out([late] * len(rows.completions))


def _filled(outcome: Outcome, single: Sequence[Future]) -> Outcome:
    """The outcome, and of rows that it was too late for, what they got alone."""
    values, errors = list(outcome.values), dict(outcome.errors)
    for row, each in enumerate(single):
        if not each.done() or not isinstance(errors.get(row), TimeoutError):
            continue
        if isinstance(each.result(), BaseException):
            errors[row] = each.result()
        else:
            values[row] = each.result()
            del errors[row]
    return Outcome(values, errors)


def _ask_alone(reward: Weighted, rows: Rows, whole: Call, stop: Future, calls: list[Call]) -> None:
    """Adds to `calls` one for each row, one after the other, while there is time and the whole is not done. A slow one
    makes room and goes on beside the next."""
    left = Clock(whole.clock.left(), lambda: whole.done.done() or stop.done()).left
    while left() > 0 and len(calls) < len(rows.completions):
        busy = undone([call.done for call in calls])
        if len(busy) == AT_ONCE or running(reward.name) > NEVER_ENDING:
            wait_for_one(left(), [whole.done, stop, *busy])
            continue
        ask = functools.partial(_alone, reward, rows.alone(len(calls)))
        calls.append(Call(reward.name, ask, left(), stop))
        wait_for_one(left() / (len(rows.completions) - len(calls) + 1), [whole.done, stop, calls[-1].done])


def _outcome(reward: Weighted, rows: Rows, clock: Clock) -> Outcome:
    try:
        return Outcome(_call(reward, rows, clock), {})
    except (InputError, GivenUp):
        raise
    except RowErrors as failed:
        return Outcome(_checked(reward.name, failed.values, rows.names), dict(failed.errors))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything
        values, errors = _sorted_out([_alone(reward, rows.alone(row), clock) for row in range(len(rows.completions))])
        return Outcome(values, errors or {None: error})


def _alone(reward: Weighted, row: Rows, clock: Clock) -> float | None | BaseException:
    """The value of a single row, or its error."""
    if clock.left() < 0:
        return TimeoutError("no time left to ask for this row alone")
    try:
        return _call(reward, row, clock)[0]
    except (InputError, GivenUp):
        raise
    except RowErrors as failed:
        return next(iter(failed.errors.values()))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything
        return error


def _sorted_out(given: Sequence[float | None | BaseException]) -> Outcome:
    """Values and errors of rows, which are one or the other."""
    errors = {row: each for row, each in enumerate(given) if isinstance(each, BaseException)}
    return Outcome([None if row in errors else each for row, each in enumerate(given)], errors)


def _is_column(column: Any, rows: int) -> bool:
    return hasattr(column, "__len__") and not isinstance(column, str | bytes | Mapping) and len(column) == rows


def _call(reward: Weighted, rows: Rows, clock: Clock) -> list[float | None]:
    columns = {name: _copied(column) for name, column in rows.columns.items()}
    given = reward.function(prompts=_copied(rows.prompts), completions=_copied(rows.completions), **columns)
    if inspect.isawaitable(given):
        given = asyncio.run(_in_time(given, clock))
    try:
        return _checked(reward.name, given, rows.names)
    except InputError as error:
        raise InputError(f"{error} ({place_of(reward.function)})") from None


def _copied(column: Any) -> Any:
    """Lists and dictionaries of its own, at any depth, so that what a reward does to them changes nothing for another.
    """
    if isinstance(column, dict):
        return {key: _copied(value) for key, value in column.items()}
    return [_copied(each) if isinstance(each, list | dict) else each for each in column] if isinstance(
        column, list) else column


async def _in_time(given: Any, clock: Clock) -> Any:
    """Raises TimeoutError when there is no time left; asyncio.run then cancels what was waited for."""
    clock.awaited = True
    task = asyncio.ensure_future(_unless_given_up(given))
    while not task.done():
        if clock.left() <= 0:
            raise TimeoutError("not done in time, and cancelled")
        await asyncio.wait({task}, timeout=min(LOOKS, clock.left()))
    return task.result()


async def _unless_given_up(given: Any) -> Any:
    """Where a coroutine blocks and is ended by force, asyncio would complain of what ended it."""
    try:
        return await given
    except GivenUp:
        raise TimeoutError("ended where it was") from None


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
    if not is_reward(value):
        raise InputError(f"reward {name}: gave {repr(value)[:60]} for {row}; give a finite number of at most "
                         f"{LARGEST:g}, or None to leave the row out")
    return float(value)
