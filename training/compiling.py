"""How long XLA has compiled: a step that compiles, as the first of each length of rows does, is slower by that."""

import functools
from typing import Any

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


class _Seconds:
    total = 0.0

    def add(self, event: str, seconds: float, **_: Any) -> None:
        if event == EVENT:
            self.total += seconds


@functools.cache
def _listening() -> _Seconds:
    seconds = _Seconds()
    jax.monitoring.register_event_duration_secs_listener(seconds.add)
    return seconds


def compile_seconds() -> float:
    """Seconds that this process has compiled since this was first asked."""
    return _listening().total
