"""Calls of reward functions in threads of their own, which can be given up."""

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from rewards.contract import Clock, on_clock

CANCELLING = 1.0
"""seconds in which a coroutine that is cancelled ends"""


class GivenUp(SystemExit):  # noqa: N818 - what ends a thread without a word
    """Raised in a call that nobody waits for any more."""


class Call:
    """function(clock) in a thread, `seconds` long or until `stop` is done. `done` holds what it gives or raises."""

    def __init__(self, name: str, function: Callable[[Clock], Any], seconds: float, stop: Future):
        self.clock, self.done = Clock(seconds, stop.done), Future()
        self._function, self._lock, self._over = function, threading.Lock(), False
        self._thread = threading.Thread(target=self._work, name=f"reward {name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            with on_clock(self.clock):
                self.done.set_result(self._function(self.clock))
        except GivenUp:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self.done.set_exception(error)
        finally:
            with self._lock:
                self._over = True

    def give_up(self) -> None:
        """Ends it at its next step of Python, unless it minds its time and so ends by itself. What blocks or computes
        outside of Python, a sleep, say, or a request, goes on until it returns. A coroutine may end itself first."""
        if not self.clock.awaited:
            self._interrupt()
        elif not self.done.done():
            later = threading.Timer(CANCELLING, self._interrupt)
            later.daemon = True
            later.start()

    def _interrupt(self) -> None:
        with self._lock:  # so long the thread is that of this number
            if not self._over and not self.clock.minded:
                number = ctypes.c_ulong(self._thread.ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(GivenUp))


def running(name: str) -> int:
    """Threads of that reward, whoever waits for them."""
    return sum(thread.name == f"reward {name}" for thread in threading.enumerate())


def undone(futures: Sequence[Future]) -> list[Future]:
    """Those of them that are not done."""
    return [each for each in futures if not each.done()]


def wait_for_one(seconds: float, futures: Sequence[Future]) -> None:
    """Until one of them is done."""
    wait(futures, max(0.0, min(seconds, threading.TIMEOUT_MAX)), FIRST_COMPLETED)


@functools.cache
def warn_of_late(name: str) -> None:
    """Once each."""
    print(f"warning: reward {name} was not done in its time and is given up: what it returns is ignored, and its "
          f"thread ends at its next step of Python, which a call that blocks puts off; let it look at "
          f"rewards.contract.time_left(), or make it a coroutine function", file=sys.stderr)
