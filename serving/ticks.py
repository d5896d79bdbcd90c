"""The engine's thread: each tick submits what was asked since the last one, drops what nobody waits for any more,
scores some rows, decodes some tokens, and gives what came to those who wait for it.

    ticks = Ticks(engine, make_request, scorer)
    threading.Thread(target=ticks.run)            # in process 0; in the others run() is all that they do
    job = ticks.submit(draws, rows, put)          # from any thread of process 0; `put` is called in the engine's
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
from typing import Any, NamedTuple, Protocol

import jax

from errors import InputError
from rollouts.engine import Engine, Output, Request
from sharding.exchange import decided, gather

SECONDS = 0.2
"""that decoding may take in a tick, so that what came is soon given, and who comes or goes is soon heard"""
LONGEST = 32
"""tokens of a tick, however fast they are"""
FAILURES = 3
"""steps in a row that may fail before everything on its way is given up"""
READ_BY_ALL = 100
"""ticks after which processes meet, so that what was decided for each is dropped"""


class Draw(NamedTuple):
    """One completion that is asked for, in what JSON has, so that every process makes the same request of it."""

    tokens: list[int]
    max_new_tokens: int
    key: list[int]
    controls: list[float]
    """of rollouts.sampling.Controls, in order"""
    stop: list[str]
    stop_ids: list[int]
    """end tokens besides the tokenizer's"""
    ignore_eos: bool
    """the tokenizer's end none"""
    logit_bias: list[tuple[int, float]]
    num_likeliest: int
    grammar: str | None


class Asked(NamedTuple):
    """A row that is to be scored, in what JSON has."""

    tokens: list[int]
    likeliest: bool
    """the likeliest tokens are wanted, too"""


class RowScorer(Protocol):
    at_a_time: int

    def score(self, rows: Sequence[Asked]) -> list[Any]:
        """Scores of up to `at_a_time` rows."""


class Taken(NamedTuple):
    """All that a job asks for is on its way."""


class Drawn(NamedTuple):
    """What came for draw number `number` of a job."""

    number: int
    output: Output


class Scored(NamedTuple):
    """The scores of row number `number` of a job."""

    number: int
    scores: Any


Event = Taken | Drawn | Scored | Exception
"""what a job is told; after an exception, nothing more"""
Put = Callable[[list[Event]], None]


class Ticks:
    """See the module. A reward model has no engine, and draws nothing."""

    def __init__(self, engine: Engine | None, make_request: Callable[[Draw], Request], scorer: RowScorer):
        self._engine, self._make_request, self._scorer = engine, make_request, scorer
        self._asked: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._puts: dict[int, Put] = {}  # of jobs, in process 0
        self._draws: dict[int, tuple[int, int]] = {}  # id of the engine -> job and number of the draw
        self._rows: deque[tuple[int, int, Asked]] = deque()  # job, number of the row, the row
        self._failures, self._count = Counter(), 0
        self._seconds = SECONDS / 4  # that a token of a tick takes
        self.error: BaseException | None = None
        """what ended the thread, if it was not asked to"""
        self.ended = threading.Event()

    # ------------------------------------------------------------------------------------ from any thread of process 0

    def submit(self, draws: Sequence[Draw], rows: Sequence[Asked], put: Put) -> int:
        """The job's number. `put` gets Taken, or the exception that refuses it, then what comes."""
        job = next(self._numbers)
        self._puts[job] = put
        self._asked.put(["take", job, list(draws), list(rows)])
        return job

    def cancel(self, job: int) -> None:
        """Nobody waits for a job any more; one that has ended is no matter."""
        if self._puts.pop(job, None):
            self._asked.put(["drop", job])

    def stop(self) -> None:
        """Ends run() in every process."""
        self._asked.put(["stop"])

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
            for job in [*self._puts]:
                self._tell(job, [RuntimeError("the engine's thread has ended")])

    def tick(self) -> bool:
        """Whether to go on."""
        orders, max_tokens = decided(self._decide)
        for kind, *order in orders:
            if kind == "stop":
                return False
            (self._take if kind == "take" else self._drop)(*order)
        self._guarded("scoring", self._score)
        self._guarded("decoding", lambda: self._step(max_tokens))
        self._count += 1
        if self._count % READ_BY_ALL == 0:
            gather(None)
        return True

    @property
    def _busy(self) -> bool:
        return bool(self._rows) or self._engine is not None and self._engine.busy

    def _decide(self) -> tuple[list[list[Any]], int]:
        """What was asked since the last tick, and the tokens of this one; waits where there is nothing to do."""
        orders = [] if self._busy else [self._asked.get()]
        while True:
            try:
                orders.append(self._asked.get_nowait())
            except queue.Empty:
                return orders, max(1, min(LONGEST, int(SECONDS / self._seconds)))

    def _take(self, job: int, draws: Sequence[Any], rows: Sequence[Any]) -> None:
        try:
            ids = self._engine.submit([self._make_request(Draw(*draw)) for draw in draws]) if draws else []
        except InputError as error:
            self._tell(job, [error])
            return
        except Exception as error:  # noqa: BLE001 - a bug that a request has found, in every process: others go on
            traceback.print_exception(error, file=sys.stderr)
            self._tell(job, [error])
            return
        self._draws |= {identity: (job, number) for number, identity in enumerate(ids)}
        self._rows += [(job, number, Asked(*row)) for number, row in enumerate(rows)]
        self._tell(job, [Taken()])

    def _drop(self, job: int) -> None:
        ids = [identity for identity, (its_job, _) in self._draws.items() if its_job == job]
        if ids:
            self._engine.cancel(ids)
        for identity in ids:
            del self._draws[identity]
        self._rows = deque(row for row in self._rows if row[0] != job)

    def _score(self) -> None:
        rows = [*itertools.islice(self._rows, self._scorer.at_a_time)]
        for (job, number, _), scores in zip(rows, self._scorer.score([row for *_, row in rows]) if rows else ()):
            self._tell(job, [Scored(number, scores)])
        for _ in rows:
            self._rows.popleft()

    def _step(self, max_tokens: int) -> None:
        if self._engine is None or not self._engine.busy:
            return
        start, events = time.monotonic(), {}
        outputs = self._engine.step(max_tokens, read_all=False)
        for output in outputs:
            if output.id in self._draws:
                job, number = self._draws[output.id]
                events.setdefault(job, []).append(Drawn(number, output))
                if output.finish_reason:
                    del self._draws[output.id]
        for job, its_events in events.items():
            self._tell(job, its_events)
        self._took(time.monotonic() - start, max((len(output.tokens) for output in outputs), default=0))

    def _took(self, seconds: float, tokens: int) -> None:
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
            if self._failures[name] >= FAILURES:
                self._give_up(error)
        else:
            del self._failures[name]

    def _give_up(self, error: Exception) -> None:
        self._failures.clear()
        for job in {job for job, _ in self._draws.values()} | {job for job, *_ in self._rows}:
            self._drop(job)
            self._tell(job, [error])

    def _tell(self, job: int, events: list[Event]) -> None:
        put = self._puts.get(job)
        if put:
            put(events)
