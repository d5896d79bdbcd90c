"""What every loop does around its steps: goes on from a checkpoint, evaluates, saves, stops when it is told to."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from errors import CommonError, InputError, Stopped
from sharding.hosts import lost_peers
from training import checkpoints
from training.log import Log
from training.metrics import read_metrics
from training.preemption import Preemption
from training.state import TrainState
from training.trackers import StepProfiler

Evaluate = Callable[[TrainState], dict[str, float]]


@runtime_checkable
class Benchmarks(Protocol):
    """What judges the model by tasks, which may take long; it keeps what it found itself."""

    def due(self, step: int) -> bool:
        """Whether the model after so many steps is to be judged."""

    def done(self, step: int) -> bool:
        """Whether it has been, perhaps before the run was ended and went on."""

    def __call__(self, state: TrainState, step: int) -> dict[str, float]:
        """Metrics of that model, measured or, where that is done, as they were found."""


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
    flops_per_token: Callable[[int], float] | None = None
    """of training on a row of so many positions; None where a step is more than that"""


@contextlib.contextmanager
def kept(run: Path, state: TrainState, config: LoopConfig, evaluate: Evaluate | None,
         gather: Callable[[Any], Any] = lambda position: position,
         benchmarks: Benchmarks | None = None) -> Iterator[tuple["Keeper", TrainState, Any]]:
    """(a Keeper, the state and the position in the data of the run's newest checkpoint, or `state` and None), for the
    loop in the block; at its end the last checkpoint is written.

    `gather` makes of this process' position the one that is saved.
    """
    with Preemption() as stop, checkpoints.opened(run, keep_best=config.keep_best) as manager:
        restored = checkpoints.restore_newest(manager, state)
        state, position = restored if restored else (state, None)
        _tell_progress(int(state.step), config.max_steps)
        keeper = Keeper(run, config, manager, stop, evaluate, gather, int(state.step), benchmarks)
        try:
            with lost_peers(lambda: keeper.saved), keeper.log:
                yield keeper, state, position
        finally:
            keeper.profiler.close(lambda: None)
        with checkpoints.writing(manager):
            manager.wait_until_finished()


def _tell_progress(done: int, max_steps: int) -> None:
    """A line where a run goes on."""
    if done and jax.process_index() == 0:
        print(f"already finished: all {max_steps} steps are made; nothing to do" if done == max_steps else
              f"resumes at step {done + 1} of {max_steps} from checkpoint {done}", flush=True)


class Keeper:
    """What a loop of either kind asks at each of its steps."""

    def __init__(self, run: Path, config: LoopConfig, manager: Any, stop: Preemption, evaluate: Evaluate | None,
                 gather: Callable[[Any], Any], first: int, benchmarks: Benchmarks | None = None):
        self._config, self._manager, self._stop, self._evaluate = config, manager, stop, evaluate
        self._gather, self._first, self.saved = gather, first, first
        self._position = self._eval_metrics = None
        self._benchmarks = benchmarks
        self.log = Log(run, first, config.max_steps, config.trackers)
        self.profiler = StepProfiler(run, config.profile)

    def steps(self, state: TrainState) -> Iterator[int]:
        """The numbers of the steps that are left; an evaluation that is due before them comes first."""
        if self._evaluate is not None and (self._first == 0 or self._owes_evaluation()):
            self.log.evaluated(self._first, self._evaluate(state))
        if self._benchmarks is not None and (self._first == 0 or not self._benchmarks.done(self._first)):
            self._judge(state, self._first)
        yield from range(self._first + 1, self._config.max_steps + 1)

    @contextlib.contextmanager
    def saving_on_error(self, state: TrainState, step: int) -> Iterator[None]:
        """A row, or a reward, that is bad loses nothing of what was done before `step`, unless `state` is donated by
        then, and gone."""
        try:
            yield
        except InputError as error:
            common = jax.process_count() == 1 or isinstance(error, CommonError)  # a save needs all processes
            gone = any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
            if common and step - 1 > self.saved and not gone:
                self._save(state, step - 1)
            if common:
                self._wait_for_save()  # lost_peers ends the process as soon as it has the error
            raise

    def finish(self, state: TrainState, step: int, position: Any,
               record: Callable[[], Mapping[str, str]] = dict) -> None:
        """Records what there is of a step beside its state, evaluates, saves, and stops, as is due. `position` is
        where the data are after all that the step has drawn. What `record` raises saves nothing: no checkpoint is of a
        step that is not kept. Raises Stopped, the run being saved, after SIGTERM or Ctrl-C."""
        self._position, self._eval_metrics = position, None
        self.log.sampled(step, record())
        if self._evaluate is not None and self._due(step, self._config.eval_every):
            self.log.flush()
            with self.saving_on_error(state, step + 1):
                self._eval_metrics = self._evaluate(state)
            self.log.evaluated(step, self._eval_metrics)
        stopping = self._stop.requested(step) and step < self._config.max_steps
        if stopping or self._due(step, self._config.save_every):
            self._save(state, step)
        if stopping:
            self._wait_for_save()
            raise Stopped(f"stopped by {self._stop.cause} after step {step} of {self._config.max_steps}, which is "
                          f"saved; the same command goes on from there")
        self._judge(state, step)

    def _judge(self, state: TrainState, step: int) -> None:
        """By benchmarks, where that is due; what a step has made is saved before, or where they fail."""
        if self._benchmarks is None or not self._benchmarks.due(step):
            return
        self.log.flush()
        with self.saving_on_error(state, step + 1):
            metrics = self._benchmarks(state, step)
        if metrics:
            self.log.evaluated(step, metrics, shown=False)  # the benchmarks have tables of their own

    def _owes_evaluation(self) -> bool:
        """Whether the step that was saved last was to be evaluated, and that failed."""
        done = any(line["step"] == self._first and any(name.startswith("eval/") for name in line)
                   for line in read_metrics(self.log.run))
        return self._due(self._first, self._config.eval_every) and not done

    def _due(self, step: int, every: int) -> bool:
        return step == self._config.max_steps or (every > 0 and step % every == 0)

    def _save(self, state: TrainState, step: int) -> None:
        self.log.flush()
        checkpoints.save(self._manager, state, self._gather(self._position), self._eval_metrics)
        self.saved = step

    def _wait_for_save(self) -> None:
        with checkpoints.writing(self._manager):
            self._manager.wait_until_finished()
