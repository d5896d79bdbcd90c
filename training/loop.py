"""The loop around the train step: batches in, metrics out, checkpoints, a progress bar."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from data.batches import Batch, micro_batches
from errors import InputError
from sharding.rules import RULES, ways
from training import checkpoints
from training.metrics import MetricsFile
from training.progress import TrainingProgress
from training.state import TrainState

MAX_SKIPPED = 10
"""updates skipped in a row (non-finite gradients) after which a run stops"""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long a loop runs and what it keeps."""

    max_steps: int
    num_microbatches: int
    save_every: int
    eval_every: int


def put_batch(batch: Batch, mesh: jax.sharding.Mesh, num_microbatches: int | None = None) -> dict[str, jax.Array]:
    """A host batch onto the mesh, its rows split: [K, B, T] for a train step, [B, T] without micro-batches."""
    shards = ways(RULES["batch"], mesh)
    stacked = micro_batches(batch, num_microbatches or 1, shards)
    stacked = stacked if num_microbatches else {name: array[0] for name, array in stacked.items()}
    spec = PartitionSpec(None, RULES["batch"]) if num_microbatches else PartitionSpec(RULES["batch"])
    return jax.device_put(stacked, NamedSharding(mesh, spec))


def train(state: TrainState, train_step: Callable[..., Any], batches: Any, run: Path, mesh: jax.sharding.Mesh,
          config: LoopConfig, evaluate: Callable[[TrainState], dict[str, float]] | None = None) -> TrainState:
    """Steps until config.max_steps, from where `run`'s newest checkpoint stands; returns the last state.

    `batches` is a Grain IterDataset. `evaluate` gives held-out metrics: before the first step, every eval_every steps
    and after the last. Raises InputError after MAX_SKIPPED skipped updates in a row.
    """
    iterator = iter(batches)
    with checkpoints.open_manager(run) as manager, jax.set_mesh(mesh):
        if manager.latest_step() is not None:
            state, position = checkpoints.restore(manager, state)
            iterator.set_state(position)
        first = int(state.step)
        log = _Log(MetricsFile(run, first), config, first)
        with log.progress, log:
            if evaluate is not None and first == 0:
                log.held_out(0, evaluate(state))
            for step in range(first + 1, config.max_steps + 1):
                state = _one_step(state, train_step, iterator, mesh, config, log, step)
                if evaluate is not None and _due(step, config.eval_every, config.max_steps):
                    log.flush()
                    log.held_out(step, evaluate(state))
                if _due(step, config.save_every, config.max_steps):
                    log.flush()
                    checkpoints.save(manager, state, iterator.get_state())
    return state


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _one_step(state: TrainState, train_step: Any, iterator: Iterator[Batch], mesh: Any, config: LoopConfig,
              log: "_Log", step: int) -> TrainState:
    batch = next(iterator)
    tokens = int(np.count_nonzero(batch["segment_ids"]))
    on_device = put_batch(batch, mesh, config.num_microbatches)
    with jax.transfer_guard("disallow"):
        state, metrics = train_step(state, on_device)
    log.dispatched(step, metrics, tokens)
    return state


class _Log:
    """Writes a step's metrics once the next step is under way, so that the device never waits for the host."""

    def __init__(self, file: MetricsFile, config: LoopConfig, first: int):
        self._file, self._pending, self._skipped = file, None, 0
        self._last = time.perf_counter()
        self.progress = TrainingProgress(first, config.max_steps)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.flush()

    def dispatched(self, step: int, metrics: dict[str, jax.Array], tokens: int) -> None:
        self.flush()
        self._pending = (step, metrics, tokens)

    def flush(self) -> None:
        """Waits for the step that is pending and writes it down."""
        if self._pending is None:
            return
        (step, metrics, tokens), self._pending = self._pending, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._file.num_tokens += tokens
        values |= {"num_tokens": self._file.num_tokens, "tokens_per_second": tokens / seconds}
        self._file.write(step, values)
        self.progress.step(step, values)
        self._check(values["skipped_updates"], step)

    def held_out(self, step: int, values: dict[str, float]) -> None:
        self._file.write(step, {f"eval/{name}": value for name, value in values.items()})
        self.progress.note(step, values)
        self._last = time.perf_counter()

    def _check(self, skipped: int, step: int) -> None:
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= MAX_SKIPPED:
            raise InputError(f"step {step}: {self._skipped} updates in a row had non-finite gradients and were "
                             f"skipped; lower --learning-rate, or use --dtype float32")
