"""SIGTERM, which schedulers send before they take a machine away: all processes stop after the same step."""

import signal
from typing import Any

import jax

from sharding import hosts


class Preemption:
    """While it is entered, SIGTERM is noted instead of ending the process; `requested` tells at a step's end."""

    def __init__(self) -> None:
        self._noted, self._previous = False, None

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:  # with several, JAX's own service listens, and agrees on the step
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, *_: Any) -> None:
        self._noted = True

    def requested(self, step: int) -> bool:
        """True at the end of the step after which to save and stop; the same step in every process."""
        return self._noted if jax.process_count() == 1 else hosts.reached_stop(step)
