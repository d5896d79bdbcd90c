"""What is kept and shown of a step's rollouts."""

from pathlib import Path

import numpy as np

from rollouts import samples
from rollouts.console import FailureLog, log_completions
from rollouts.drawing import Draw
from rollouts.metrics import SpreadMonitor
from sharding.hosts import is_main


class Recorder:
    """Writes samples/ and failures.jsonl of a run, prints completions, and warns where rewards teach nothing."""

    def __init__(self, run: Path, log_completions_every: int, monitor: SpreadMonitor):
        self._run, self._every = run, log_completions_every
        self._monitor, self._failures = monitor, FailureLog(run / "failures.jsonl")

    def record(self, draw: Draw, number: int, advantages: np.ndarray, policy_logps: np.ndarray | None) -> None:
        """Takes the rollouts of the step of this number, and what was trained on (rollouts.samples)."""
        if not is_main():
            return
        samples.write_samples(self._run, number, draw.groups, draw.trained, advantages, policy_logps)
        self._failures.update(number, draw.groups)
        self._monitor.update(draw.groups, number)
        if self._every and (number - 1) % self._every == 0:
            log_completions(draw.groups, number, count=3)
