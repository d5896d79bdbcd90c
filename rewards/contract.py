"""What a reward function is, how it reports the rows that it failed on, and the time that it has left."""

import contextlib
import contextvars
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

Reward = Callable[..., list[float | None]]
"""(prompts, completions, **columns) -> a value a row, None to leave the row out. As in TRL, prompts and
completions are strings or lists of messages, columns lists, `completion_ids` (of token ids) always one of them."""

_TIME_LEFT: contextvars.ContextVar[Callable[[], float]] = contextvars.ContextVar("time_left", default=lambda: math.inf)


class RowErrors(Exception):  # noqa: N818 - several of them
    """Some rows could not be scored. `values` holds what the others got and None for these, `errors` what was raised,
    by row. A reward that raises this is not called again, so the rows that did well keep their values at no cost."""

    def __init__(self, values: Sequence[float | None], errors: Mapping[int, Exception]):
        row, error = next(iter(errors.items()))
        super().__init__(f"{len(errors)} of {len(values)} rows failed, row {row} first: {error}")
        self.values, self.errors = list(values), dict(errors)


class NotReachedError(TimeoutError):
    """The reward's time, or the machine's, was over before a row had its own: this says nothing of the row."""


def values_or_raise(outcomes: Sequence[float | Exception | None]) -> list[float | None]:
    """The outcomes where none is an exception. Raises RowErrors otherwise."""
    values = [None if isinstance(outcome, Exception) else outcome for outcome in outcomes]
    errors = {row: outcome for row, outcome in enumerate(outcomes) if isinstance(outcome, Exception)}
    if errors:
        raise RowErrors(values, errors)
    return values


def time_left() -> float:
    """Seconds until the reward that runs here is given up, none or fewer once it is; infinite where nobody waits with a
    clock. A reward that takes long looks at it between its parts, and stops."""
    return _TIME_LEFT.get()()


@contextlib.contextmanager
def given_seconds(seconds: float, given_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """What runs inside, in this thread or coroutine, has `seconds` left, and none from when `given_up` says so."""
    deadline = time.monotonic() + seconds
    token = _TIME_LEFT.set(lambda: -math.inf if given_up() else deadline - time.monotonic())
    try:
        yield
    finally:
        _TIME_LEFT.reset(token)


def on_device(reward: Reward) -> Reward:
    """Marks a reward that computes on the accelerator, where nothing may go on beside training once its time is over:
    it is called in the thread that waits for it, and must mind its time_left()."""
    reward.on_device = True
    return reward
