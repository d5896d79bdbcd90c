"""What a reward function is, how it reports the rows that it failed on, and the time that it has left."""

import contextlib
import contextvars
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

Reward = Callable[..., list[float | None]]
"""(prompts, completions, **columns) -> a value a row, None to leave the row out. As in TRL, prompts and
completions are strings or lists of messages, columns lists, `completion_ids` (of token ids) always one of them."""



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


class Clock:
    """The time that a call of a reward has: `seconds` from now, and none from when `given_up` says so."""

    def __init__(self, seconds: float = math.inf, given_up: Callable[[], bool] = lambda: False):
        self._deadline, self._given_up = time.monotonic() + seconds, given_up
        self.minded = False
        """the call has looked at its time_left()"""
        self.awaited = False
        """it is a coroutine's, which is cancelled when no time is left"""

    def left(self) -> float:
        """Seconds; none or fewer once they are over."""
        return -math.inf if self._given_up() else self._deadline - time.monotonic()


_ENDLESS = Clock()
_CLOCK = contextvars.ContextVar("clock", default=_ENDLESS)


def clock() -> Clock:
    """That of the reward that runs here, for threads that it starts."""
    _CLOCK.get().minded = True
    return _CLOCK.get()


def time_left() -> float:
    """Seconds until the reward that runs here is given up, none or fewer once it is; infinite where nobody waits with a
    clock. A reward that takes long looks at it between its parts, and stops, raising RowErrors for what it lacks."""
    return clock().left()


@contextlib.contextmanager
def on_clock(clock: Clock) -> Iterator[None]:
    """What runs inside, in this thread or coroutine, has this time."""
    token = _CLOCK.set(clock)
    try:
        yield
    finally:
        _CLOCK.reset(token)


def on_device(reward: Reward) -> Reward:
    """Marks a reward that computes on the accelerator, where nothing may go on beside training once its time is over:
    it is called in the thread that waits for it, and must mind its time_left()."""
    reward.on_device = True
    return reward
