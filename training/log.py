"""What a run writes down of its steps: metrics.jsonl, trackers, the progress bar."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from errors import Stopped
from files import writing
from training.compiling import compile_seconds
from training.metrics import MetricsFile
from training.progress import TrainingProgress
from training.throughput import device_memory, throughput_metrics
from training.trackers import open_trackers
from training.watching import Watch


class Log:
    """Writes a step's metrics once the next step is under way, so that the device never waits for the host; a loop that
    waits for its steps calls `flush` after each."""

    def __init__(self, run: Path, first: int, max_steps: int, trackers: tuple[str, ...] = ()):
        self.run, self._main = run, jax.process_index() == 0
        self._pending, self._watch = None, Watch(shown=self._main)
        with writing(run / "metrics.jsonl"):
            self._file = MetricsFile(run, first) if self._main else None
        self._trackers = open_trackers(trackers, run, first)
        self._progress = TrainingProgress(first, max_steps, shown=self._main)
        self._last, self._compiled = time.perf_counter(), compile_seconds()

    def __enter__(self) -> "Log":
        self._progress.__enter__()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None or issubclass(kind, Stopped):
            self.flush()
        self._progress.__exit__()
        self._trackers.close()

    def dispatched(self, step: int, metrics: dict[str, Any], data_seconds: float = 0.0,
                   flops_per_token: float = 0.0) -> None:
        """Takes the metrics of a step that is under way, and what a token of its rows costs (0: not known); those of
        the step before are written."""
        self.flush()
        self._pending = (step, metrics, data_seconds, flops_per_token)

    def flush(self) -> None:
        """Waits for the step that is pending and writes it down. Raises InputError after many that taught
        nothing (Watch)."""
        if self._pending is None:
            return
        (step, metrics, data_seconds, flops_per_token), self._pending = self._pending, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        values |= {"tokens_per_second": values["num_tokens"] / seconds, "step_seconds": seconds,
                   "data_seconds": min(data_seconds, seconds)}
        if flops_per_token:
            values |= throughput_metrics(flops_per_token, values["num_tokens"], seconds)
        values |= device_memory() | self._compile_seconds()
        self._write(step, values)
        self._watch.update(step, values)

    def evaluated(self, step: int, values: dict[str, float], shown: bool = True) -> None:
        """Writes eval metrics down; `shown`: prints them, too."""
        self._write(step, {f"eval/{name}": value for name, value in values.items()}, shown)
        self._last = time.perf_counter()

    def sampled(self, step: int, texts: Mapping[str, str]) -> None:
        """Shows texts by name where the run is watched."""
        for name, text in texts.items() if self._main else ():
            self._trackers.log_text(step, name, text)

    def _write(self, step: int, values: dict[str, Any], shown: bool = True) -> None:
        if not self._main:
            return
        with writing(self._file.path):
            values = self._file.write(step, values)
        self._trackers.log(step, values)
        if "num_tokens" in values:
            self._progress.step(step, values)
        elif shown:
            self._progress.note(step, values)

    def _compile_seconds(self) -> dict[str, float]:
        """Since the step before, if anything was compiled."""
        before, self._compiled = self._compiled, compile_seconds()
        return {"compile_seconds": self._compiled - before} if self._compiled > before else {}
