"""Whose turn it is: rows of a batch, each with time of its own, none able to take another's.

Rows begin in a random order, as many at once as there are CPUs. One that is not done after its share of the batch's
time makes room for the next and goes on beside it: endless programs do not keep others from their verdicts. A row's own
time is what passed on the clock, less what its processes waited for a CPU, so a busy machine makes no program wrong.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rewards.contract import NotReachedError, clock
from rewards.execution.cpus import cpus

PATIENCE = 6.0
"""times a row's seconds may pass on the clock, however little of the CPU it got"""
HANDING_OVER = 0.5
"""seconds at the end of a batch's time in which nothing runs any more"""
LOOKS = 0.25
"""seconds between looks at a row's time"""
MOST = 64
"""rows that are under way at once"""


class Turn:
    """A row's time. Begins when its processes are up; `over` once it has used `seconds`, or the batch's time is, of
    which `batch_left` says what is left."""

    def __init__(self, batch_left: Callable[[], float], share: float):
        self.batch_left, self.share = batch_left, share
        self.begin(0.0)

    def begin(self, seconds: float, *bwraps: int) -> None:
        """From now on a row of `seconds` that runs in these processes and those below them."""
        self._pids = [pid for each in bwraps for pid in _below(each)]
        self._began, self._seconds, self._before = time.monotonic(), seconds, sum(map(_waited, self._pids))

    def used(self) -> float:
        """Seconds of its own."""
        clock = time.monotonic() - self._began
        return max(clock / PATIENCE, clock - (sum(map(_waited, self._pids)) - self._before))

    def left(self) -> float:
        """Seconds to wait until looking again; 0 when its time is over."""
        return max(0.0, min(self._seconds - self.used(), self.batch_left(), LOOKS))

    def check(self) -> None:
        """Raises NotReachedError where the batch's time ended before the row had its share."""
        if self.batch_left() <= 0 and self.used() < min(self._seconds, self.share / 2):
            raise NotReachedError("the reward's time was over before this row had its share of it")


def in_turns(judge: Callable[[int, Turn], Any], rows: Sequence[int], seconds: float,
             workers: int | None = None) -> dict[int, Any]:
    """What judge(row, turn) returns or raises for each of the rows, which may take `seconds` each."""
    at_once = workers or cpus()
    given = clock()  # of this thread, for those of the rows

    def left() -> float:
        return given.left() - HANDING_OVER

    share = min(seconds, max(0.1, left() * at_once / max(1, len(rows))))
    room = threading.Semaphore(at_once)
    order = random.SystemRandom().sample(list(rows), len(rows))

    def one(row: int) -> Any:
        with _room(room, left, share / 2):
            return judge(row, Turn(left, share))

    with ThreadPoolExecutor(min(MOST, max(1, len(rows)))) as pool:
        return dict(zip(order, pool.map(lambda row: _outcome(one, row), order)))


def _outcome(one: Callable[[int], Any], row: int) -> Any:
    try:
        return one(row)
    except Exception as error:  # noqa: BLE001 - handed to the caller, by row
        return error


@contextlib.contextmanager
def _room(room: threading.Semaphore, left: Callable[[], float], seconds: float) -> Iterator[None]:
    """Waits for room, which is free again at the end, or after these seconds."""
    held: list[threading.Semaphore] = []
    while left() > 0 and not held:
        held += [room] * room.acquire(timeout=max(0.0, min(left(), LOOKS)))
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), lambda: held and held.pop().release())
    timer.daemon = True
    timer.start()
    try:
        if left() <= 0:
            raise NotReachedError("the reward's time was over before this row's turn")
        yield
    finally:
        timer.cancel()
        timer.join()
        for each in held:
            each.release()


def _below(pid: int) -> list[int]:
    """The process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in _below(int(child)))]


def _waited(pid: int) -> float:
    """Seconds for which a process was ready to run and did not; 0 where the kernel does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
