"""The loop around the train step: batches in, metrics out, checkpoints, a progress bar."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from batch import Batch, widen
from errors import InputError, Stopped
from files import writing
from sharding.exchange import gather
from sharding.hosts import lost_peers
from sharding.placement import Placement
from training import checkpoints
from training.metrics import MetricsFile, read_metrics
from training.preemption import Preemption
from training.progress import TrainingProgress
from training.state import TrainState
from training.throughput import device_memory, throughput_metrics
from training.trackers import StepProfiler, open_trackers


class Batches(Protocol):
    """What a run is fed: endless batches, and where in the data they stand."""

    rows: list[int]
    """records of the global batch that this process gives"""

    def __next__(self) -> Any:
        """The next batch of these records."""

    def position(self) -> dict[int, Any]:
        """{record: where its stream stands}, for JSON."""

    def close(self) -> None:
        """Ends what reads ahead."""


MAX_SKIPPED = 10
"""updates skipped in a row (non-finite gradients) after which a run stops"""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long a loop runs, what it keeps and what it shows."""

    max_steps: int
    save_every: int
    eval_every: int
    keep_best: bool = False
    trackers: tuple[str, ...] = ()
    profile: tuple[int, int] | None = None
    """first and last step of a profiler trace"""
    flops_per_token: float = 0.0
    """of training; 0 where a step is more than that"""
    waits: bool = False
    """a step is waited for, so that its metrics are written at once and not once the next one is under way"""


def train(state: TrainState, train_step: Callable[..., Any], open_batches: Callable[[Any], Batches], run: Path,
          placement: Placement, config: LoopConfig,
          evaluate: Callable[[TrainState], dict[str, float]] | None = None,
          put: Callable[[Any, list[int]], Any] | None = None) -> TrainState:
    """Steps until config.max_steps, from where `run`'s newest checkpoint stands; returns the last state.

    `open_batches` takes the position in the data, None for its beginning. `evaluate` gives eval metrics: before the
    first step, every eval_every steps and after the last. `put` brings a batch to the devices, as placement.put does
    unless it is given. Raises InputError for bad rows (after saving what is done),
    and after MAX_SKIPPED skipped updates in a row; Stopped, the run being saved, after SIGTERM.
    """
    with (Preemption() as stop, checkpoints.opened(run, keep_best=config.keep_best) as manager,
          jax.set_mesh(placement.mesh)):
        restored = checkpoints.restore_newest(manager, state)
        state, position = restored if restored else (state, None)
        loop = _Loop(run, placement, config, manager, open_batches(position), int(state.step),
                     put or placement.put)
        try:
            with lost_peers(lambda: loop.saved), loop.log:
                state = loop.steps(state, train_step, evaluate, stop)
        finally:
            loop.profiler.close(lambda: None)
            loop.batches.close()
        with checkpoints.writing(manager):
            manager.wait_until_finished()
    return state


class _Loop:
    """What a step of the loop needs besides the state."""

    def __init__(self, run: Path, placement: Placement, config: LoopConfig, manager: Any, batches: Batches,
                 first: int, put: Callable[[Any, list[int]], Any]):
        self.placement, self.config, self.manager, self.batches, self.first = placement, config, manager, batches, first
        self.put, self.log = put, _Log(run, config, first)
        self.profiler = StepProfiler(run, config.profile)
        self.position, self.eval_metrics, self.saved = None, None, first

    def steps(self, state: TrainState, train_step: Any, evaluate: Any, stop: Preemption) -> TrainState:
        config = self.config
        if evaluate is not None and (self.first == 0 or self._owes_evaluation()):
            self.log.evaluated(self.first, evaluate(state))
        for step in range(self.first + 1, config.max_steps + 1):
            state = self._one_step(state, train_step, step)
            self.eval_metrics = None
            if evaluate is not None and _due(step, config.eval_every, config.max_steps):
                self.log.flush()
                with self._saving_on_error(state, step + 1):
                    self.eval_metrics = evaluate(state)
                self.log.evaluated(step, self.eval_metrics)
            stopping = stop.requested(step) and step < config.max_steps
            if stopping or _due(step, config.save_every, config.max_steps):
                self._save(state, step)
            if stopping:
                with checkpoints.writing(self.manager):
                    self.manager.wait_until_finished()
                raise Stopped(f"stopped by SIGTERM after step {step} of {config.max_steps}, which is saved; the same "
                              f"command goes on from there")
        return state

    def _owes_evaluation(self) -> bool:
        """Whether the step that was saved last was to be evaluated, and that failed."""
        done = any(line["step"] == self.first and any(name.startswith("eval/") for name in line)
                   for line in read_metrics(self.log.run))
        return _due(self.first, self.config.eval_every, self.config.max_steps) and not done

    def _one_step(self, state: TrainState, train_step: Any, step: int) -> TrainState:
        start = time.perf_counter()
        with self._saving_on_error(state, step):
            batch = agree_on_length(next(self.batches))
            data_seconds = time.perf_counter() - start
            on_device = self.put(batch, self.batches.rows)
            self.profiler.before(step)
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, on_device)
        self.log.dispatched(step, metrics, data_seconds)
        if self.config.waits:
            self.log.flush()
        self.profiler.after(step, lambda: jax.block_until_ready(metrics))
        self.position = self.batches.position()
        return state

    @contextlib.contextmanager
    def _saving_on_error(self, state: TrainState, step: int) -> Iterator[None]:
        """A row, or a reward, that is bad loses nothing of what was done before `step`."""
        try:
            yield
        except InputError:
            if jax.process_count() == 1 and step - 1 > self.saved:
                self._save(state, step - 1)
            raise

    def _save(self, state: TrainState, step: int) -> None:
        self.log.flush()
        position = gather_position(self.position, self.placement.batch_size)
        checkpoints.save(self.manager, state, position, self.eval_metrics)
        self.saved = step


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def agree_on_length(batch: Batch) -> Batch:
    """The batch padded to the longest that any process has; they are of one global array."""
    if jax.process_count() == 1:
        return batch
    lengths = multihost_utils.process_allgather(np.int32(batch["tokens"].shape[1]))
    return widen(batch, int(np.max(lengths)))


def gather_position(local: dict[int, Any], batch_size: int) -> list[Any]:
    """The state of each of the batch's streams, from the processes that read them."""
    merged = {int(row): state for part in gather(local) for row, state in part.items()}
    return [merged[row] for row in range(batch_size)]


class _Log:
    """Writes a step's metrics once the next step is under way, so that the device never waits for the host."""

    def __init__(self, run: Path, config: LoopConfig, first: int):
        self.run, self._main = run, jax.process_index() == 0
        self._config, self._pending, self._skipped = config, None, 0
        with writing(run / "metrics.jsonl"):
            self._file = MetricsFile(run, first) if self._main else None
        self._trackers = open_trackers(config.trackers, run, first)
        self._progress = TrainingProgress(first, config.max_steps, shown=self._main)
        self._last = time.perf_counter()

    def __enter__(self) -> "_Log":
        self._progress.__enter__()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None or issubclass(kind, Stopped):
            self.flush()
        self._progress.__exit__()
        self._trackers.close()

    def dispatched(self, step: int, metrics: dict[str, jax.Array], data_seconds: float) -> None:
        self.flush()
        self._pending = (step, metrics, data_seconds)

    def flush(self) -> None:
        """Waits for the step that is pending and writes it down."""
        if self._pending is None:
            return
        (step, metrics, data_seconds), self._pending = self._pending, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        values |= {"tokens_per_second": values["num_tokens"] / seconds, "step_seconds": seconds,
                   "data_seconds": min(data_seconds, seconds)}
        if self._config.flops_per_token:
            values |= throughput_metrics(self._config.flops_per_token, values["num_tokens"], seconds)
        values |= device_memory()
        self._write(step, values)
        self._check(values["skipped_updates"], step)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        self._write(step, {f"eval/{name}": value for name, value in values.items()})
        self._last = time.perf_counter()

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if not self._main:
            return
        with writing(self._file.path):
            values = self._file.write(step, values)
        self._trackers.log(step, values)
        if "loss" in values:
            self._progress.step(step, values)
        else:
            self._progress.note(step, values)

    def _check(self, skipped: int, step: int) -> None:
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= MAX_SKIPPED:
            raise InputError(f"step {step}: {self._skipped} updates in a row had non-finite gradients and were "
                             f"skipped; lower --learning-rate, or use --dtype float32")
