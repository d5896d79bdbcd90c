"""The loop around the train step on rows: batches in, metrics out."""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax

from batch import Batch, widen
from sharding.exchange import gather
from sharding.placement import Placement
from training.keeping import Benchmarks, Evaluate, LoopConfig, kept
from training.state import TrainState


class Batches(Protocol):
    """What a run is fed: endless batches, and where in the data they stand."""

    rows: list[int]
    """records of the global batch that this process gives"""

    def __next__(self) -> Batch:
        """The next batch of these records."""

    def position(self) -> dict[int, Any]:
        """{record: where its stream stands}, for JSON."""

    def close(self) -> None:
        """Ends what reads ahead."""


def train(state: TrainState, train_step: Callable[..., Any], open_batches: Callable[[Any], Batches], run: Path,
          placement: Placement, config: LoopConfig, evaluate: Evaluate | None = None,
          benchmarks: Benchmarks | None = None) -> TrainState:
    """Steps until config.max_steps, from where `run`'s newest checkpoint stands; returns the last state.

    `open_batches` takes the position in the data, None for its beginning. `evaluate` gives eval metrics: before the
    first step, every eval_every steps and after the last; `benchmarks` judge when they say. Raises InputError for bad
    rows (after saving what is done), and after many steps that teach nothing (Watch); Stopped, the run being saved,
    after SIGTERM or Ctrl-C.
    """
    gather_all = functools.partial(gather_position, batch_size=placement.batch_size)
    with (kept(run, state, config, evaluate, gather_all, benchmarks) as (keeper, state, position),
          contextlib.closing(open_batches(position)) as batches):
        for step in keeper.steps(state):
            start = time.perf_counter()
            with keeper.saving_on_error(state, step):
                batch = agree_on_length(next(batches))
                data_seconds = time.perf_counter() - start
                on_device = placement.put(batch, batches.rows)
                keeper.profiler.before(step)
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, on_device)
            flops = config.flops_per_token(batch["tokens"].shape[1]) if config.flops_per_token else 0.0
            keeper.log.dispatched(step, metrics, data_seconds, flops)
            keeper.profiler.after(step, functools.partial(jax.block_until_ready, metrics))
            keeper.finish(state, step, batches.position())
    return state


def agree_on_length(batch: Batch) -> Batch:
    """The batch padded to the longest that any process has, since they are of one global array: by words between
    hosts, for which no device waits. Packed rows are all as long as each other."""
    if jax.process_count() == 1 or "row_length" not in batch:
        return batch
    return widen(batch, max(gather(batch["tokens"].shape[1])))


def gather_position(local: dict[int, Any], batch_size: int) -> list[Any]:
    """The state of each of the batch's streams, from the processes that read them."""
    merged = {int(row): state for part in gather(local) for row, state in part.items()}
    return [merged[row] for row in range(batch_size)]
