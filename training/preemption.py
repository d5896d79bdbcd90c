"""SIGTERM, which schedulers send before they take a machine away, and Ctrl-C: all processes stop after the same step.
"""

import os
import signal
import threading
from typing import Any

import jax

from sharding import hosts

NOTE = "\nCtrl-C: stopping after this step, which is saved; once more stops at once\n"
INTERRUPTED = 130
"""exit status of what Ctrl-C ends"""


class Preemption:
    """While it is entered, SIGTERM and Ctrl-C are noted instead of ending the process; `requested` tells at a step's
    end. A second Ctrl-C ends the process, even where Python waits for a device or a compiler."""

    def __init__(self) -> None:
        self.cause, self._noted, self._previous = "SIGTERM", False, {}
        self._pipe, self._wakeup = (-1, -1), -1

    def __enter__(self) -> "Preemption":
        # with several processes, JAX's own service listens to SIGTERM, and agrees on the step
        several = jax.process_count() > 1
        handlers = {signal.SIGINT: self._interrupt} | ({} if several else {signal.SIGTERM: self._note})
        self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(self._pipe[0],), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._pipe[1])  # which ends the thread
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, *_: Any) -> None:
        self._noted = True

    def _interrupt(self, *_: Any) -> None:
        self.cause, self._noted = "Ctrl-C", True
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """True at the end of the step after which to save and stop; the same step in every process."""
        return self._noted if jax.process_count() == 1 else hosts.reached_stop(step)


def _watch(pipe: int) -> None:
    """Reads the numbers of signals as they arrive: handlers wait until Python computes, this does not."""
    interrupts = 0
    while number := os.read(pipe, 1):
        interrupts += number[0] == signal.SIGINT
        if interrupts == 2:
            os._exit(INTERRUPTED)
        if number[0] == signal.SIGINT:
            os.write(2, NOTE.encode())
    os.close(pipe)
