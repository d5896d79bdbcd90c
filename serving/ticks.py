"""The engine's thread: each tick submits the requests that came since the last one, cancels those whose client has
gone, scores some rows, decodes some tokens, and gives what came to those who wait for it.

    ticks = Ticks(engine, make_request, scorer)
    threading.Thread(target=ticks.run)            # in process 0; in the others run() is all that they do
    job = ticks.submit(samples, rows, callback)   # from any thread of process 0; it is called in the engine's
    ticks.cancel(job)
    ticks.stop()

In a run of several processes, process 0 decides what every tick takes, and all make the same calls of it.
"""

import itertools
import queue
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from errors import InputError
from rollouts.engine import Engine, Request
from serving.work import Accepted, Callback, Event, Sampled, SampleRequest, Scored, ScoreRequest
from sharding.exchange import decided, gather

TICK_SECONDS = 0.2
"""that decoding may take in a tick, so that what came is soon given, and who comes or goes is soon heard"""
MAX_TICK_TOKENS = 32
"""tokens of a tick, however fast they are"""
MAX_FAILURES = 3
"""steps in a row that may fail before everything on its way is given up"""
MEETING_TICKS = 100
"""ticks after which processes meet, so that what was decided for each is dropped"""


class RowScorer(Protocol):
    at_a_time: int

    def score(self, rows: Sequence[ScoreRequest]) -> list[Any]:
        """Scores of up to `at_a_time` rows."""


class Ticks:
    """See the module. A reward model has no engine, and samples nothing."""

    def __init__(self, engine: Engine | None, make_request: Callable[[SampleRequest], Request], scorer: RowScorer):
        self._engine, self._make_request, self._scorer = engine, make_request, scorer
        self._orders: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._callbacks: dict[int, Callback] = {}  # of jobs, in process 0
        self._samples: dict[int, tuple[int, int]] = {}  # id of the engine -> job and number of the sample
        self._rows: deque[tuple[int, int, ScoreRequest]] = deque()  # job, number of the row, the row
        self._failures, self._count = Counter(), 0
        self._seconds = TICK_SECONDS / 4  # that a token of a tick takes
        self.error: BaseException | None = None
        """what ended the thread, if it was not told to"""
        self.ended = threading.Event()

    # ------------------------------------------------------------------------------------ from any thread of process 0

    def submit(self, samples: Sequence[SampleRequest], rows: Sequence[ScoreRequest], callback: Callback) -> int:
        """The job's number. `callback` gets Accepted, or the exception that refuses it, then what comes."""
        job = next(self._numbers)
        self._callbacks[job] = callback
        self._orders.put(["submit", job, list(samples), list(rows)])
        return job

    def cancel(self, job: int) -> None:
        """Nobody waits for a job any more; one that has ended is no matter."""
        if self._callbacks.pop(job, None):
            self._orders.put(["cancel", job])

    def stop(self) -> None:
        """Ends run() in every process."""
        self._orders.put(["stop"])

    # ----------------------------------------------------------------------------------------------- the engine's own

    def run(self) -> None:
        """Ticks until stop(), or until it fails (`error`)."""
        try:
            while self.tick():
                pass
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self.error = error
        finally:
            self.ended.set()
            for job in [*self._callbacks]:
                self._notify(job, [RuntimeError("the engine's thread has ended")])

    def tick(self) -> bool:
        """Whether to go on."""
        orders, max_tokens = decided(self._decide)
        for kind, *order in orders:
            if kind == "stop":
                return False
            (self._accept if kind == "submit" else self._cancel)(*order)
        self._guarded("scoring", self._score)
        self._guarded("decoding", lambda: self._step(max_tokens))
        self._count += 1
        if self._count % MEETING_TICKS == 0:
            gather(None)
        return True

    @property
    def _busy(self) -> bool:
        return bool(self._rows) or self._engine is not None and self._engine.busy

    def _decide(self) -> tuple[list[list[Any]], int]:
        """The orders since the last tick, and the tokens of this one; waits where there is nothing to do."""
        orders = [] if self._busy else [self._orders.get()]
        while True:
            try:
                orders.append(self._orders.get_nowait())
            except queue.Empty:
                return orders, max(1, min(MAX_TICK_TOKENS, int(TICK_SECONDS / self._seconds)))

    def _accept(self, job: int, samples: Sequence[Any], rows: Sequence[Any]) -> None:
        try:
            requests = [self._make_request(SampleRequest(*sample)) for sample in samples]
            ids = self._engine.submit(requests) if requests else []
        except InputError as error:
            self._notify(job, [error])
            return
        except Exception as error:  # noqa: BLE001 - a bug that a request has found, in every process: others go on
            traceback.print_exception(error, file=sys.stderr)
            self._notify(job, [error])
            return
        self._samples |= {identity: (job, number) for number, identity in enumerate(ids)}
        self._rows += [(job, number, ScoreRequest(*row)) for number, row in enumerate(rows)]
        self._notify(job, [Accepted()])

    def _cancel(self, job: int) -> None:
        ids = [identity for identity, (its_job, _) in self._samples.items() if its_job == job]
        if ids:
            self._engine.cancel(ids)
        for identity in ids:
            del self._samples[identity]
        self._rows = deque(row for row in self._rows if row[0] != job)

    def _score(self) -> None:
        rows = [*itertools.islice(self._rows, self._scorer.at_a_time)]
        for (job, number, _), scores in zip(rows, self._scorer.score([row for *_, row in rows]) if rows else ()):
            self._notify(job, [Scored(number, scores)])
        for _ in rows:
            self._rows.popleft()

    def _step(self, max_tokens: int) -> None:
        if self._engine is None or not self._engine.busy:
            return
        start, events = time.monotonic(), {}
        outputs = self._engine.step(max_tokens, read_all=False)
        for output in outputs:
            if output.id in self._samples:
                job, number = self._samples[output.id]
                events.setdefault(job, []).append(Sampled(number, output))
                if output.finish_reason:
                    del self._samples[output.id]
        for job, its_events in events.items():
            self._notify(job, its_events)
        self._measure(time.monotonic() - start, max((len(output.tokens) for output in outputs), default=0))

    def _measure(self, seconds: float, tokens: int) -> None:
        """Contexts are read in a step, too: what is slower than before counts in part."""
        if tokens:
            self._seconds = min(seconds / tokens, 1.2 * self._seconds)

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """Does it; one that fails, for want of memory, say, is tried again at the next tick, and after some failures in
        a row everything on its way is given up. One of several processes ends, as nobody knows how far others came."""
        try:
            work()
        except Exception as error:
            if jax.process_count() > 1:
                raise
            traceback.print_exception(error, file=sys.stderr)
            self._failures[name] += 1
            if self._failures[name] >= MAX_FAILURES:
                self._give_up(error)
        else:
            del self._failures[name]

    def _give_up(self, error: Exception) -> None:
        self._failures.clear()
        for job in {job for job, _ in self._samples.values()} | {job for job, *_ in self._rows}:
            self._cancel(job)
            self._notify(job, [error])

    def _notify(self, job: int, events: list[Event]) -> None:
        callback = self._callbacks.get(job)
        if callback:
            callback(events)
