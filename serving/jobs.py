"""What requests wait for, on the event loop: a bounded number of jobs, each with what comes for it."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

from errors import InputError
from rollouts.engine import Output
from serving.metrics import Metrics
from serving.refusals import Refusal, failed, overloaded
from serving.ticks import Ticks
from serving.work import Event, Sampled, SampleRequest, Scored, ScoreRequest

MAX_RETRY_SECONDS = 60
"""seconds that one is asked to wait at the most before another try"""


class Jobs:
    """Those on their way. `num_slots` samples are decoded at a time, and no job comes in while `max_queue` wait."""

    def __init__(self, ticks: Ticks, num_slots: int, max_queue: int, metrics: Metrics):
        self.ticks, self.num_slots, self.max_queue, self.metrics = ticks, num_slots, max_queue, metrics
        self.open: set[Job] = set()
        self._seconds = 1.0  # that a completion takes, of late
        metrics.watch(lambda: min(self.num_pending, num_slots), lambda: max(0, self.num_pending - num_slots))

    @property
    def num_pending(self) -> int:
        """Draws, and rows to be scored, on their way."""
        return sum(job.missing for job in self.open)

    def submit(self, samples: Sequence[SampleRequest], rows: Sequence[ScoreRequest] = ()) -> "Job":
        """To be closed. Raises Refusal where too many wait (429), and where the engine's thread has ended (503)."""
        if self.ticks.ended.is_set():
            raise Refusal(503, "the server is ending", "server_error", "unavailable")
        waiting = self.num_pending - self.num_slots
        if waiting >= self.max_queue:
            raise overloaded(min(MAX_RETRY_SECONDS, max(1, round(self._seconds * waiting / self.num_slots))))
        return Job(self, samples, rows)

    def measure(self, seconds: float) -> None:
        """A completion took so many seconds."""
        self._seconds += 0.1 * (seconds - self._seconds)


class Job:
    """What one request asks for: samples, and rows to be scored."""

    def __init__(self, jobs: Jobs, samples: Sequence[SampleRequest], rows: Sequence[ScoreRequest]):
        self._jobs, self._start, self._first = jobs, time.monotonic(), True
        self._samples, self._rows = len(samples), len(rows)  # that are missing
        self._has_grammar = any(sample.grammar for sample in samples)
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._early: deque[Sampled] = deque()
        loop = asyncio.get_running_loop()
        self._number = jobs.ticks.submit(samples, rows, lambda events: loop.call_soon_threadsafe(self._put, events))
        jobs.open.add(self)
        prompts = [tokens for tokens, _ in itertools.groupby([*samples, *rows], lambda each: each.tokens)]
        jobs.metrics.prompt_tokens.inc(sum(map(len, prompts)))  # n of a prompt count once, as in usage

    @property
    def missing(self) -> int:
        return self._samples + self._rows

    def left(self, seconds: float) -> float:
        """Of so many seconds since it came, those that are left."""
        return max(0.0, seconds - (time.monotonic() - self._start))

    def _put(self, events: Sequence[Event]) -> None:
        for event in events:
            self._events.put_nowait(event)

    async def accepted(self) -> None:
        """Returns once the engine has it. Raises InputError where it refuses it."""
        await self._next()

    async def scores(self) -> list[Any]:
        """Of all rows; before outputs()."""
        found: list[Any] = [None] * self._rows
        while self._rows:
            event = await self._next()
            if isinstance(event, Scored):
                found[event.number] = event.scores
                self._rows -= 1
            else:
                self._early.append(event)
        return found

    async def outputs(self) -> AsyncIterator[tuple[int, Output]]:
        """(number of the sample, output), until all have ended. Raises Refusal where one fails."""
        while self._samples:
            number, output = self._early.popleft() if self._early else await self._next()
            self._count(output)
            if output.error:
                raise Refusal(400, output.error) if self._has_grammar and "mask" in output.error else failed(
                    output.error)
            yield number, output

    def _count(self, output: Output) -> None:
        metrics, seconds = self._jobs.metrics, time.monotonic() - self._start
        metrics.completion_tokens.inc(len(output.tokens))
        if self._first and output.tokens:
            self._first = False
            metrics.first_token.observe(seconds)
        if output.finish_reason:
            self._samples -= 1
            self._jobs.measure(seconds)

    async def _next(self) -> Any:
        event = await self._events.get()
        if isinstance(event, Exception):
            self._samples = self._rows = 0
            raise event if isinstance(event, InputError) else failed(f"the engine has failed ({type(event).__name__})")
        return event

    def close(self) -> None:
        """Nobody waits for it any more: what has not ended is cancelled."""
        self._samples = self._rows = 0
        self._jobs.open.discard(self)
        self._jobs.ticks.cancel(self._number)
