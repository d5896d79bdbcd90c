"""What is kept and shown of a step's rollouts."""

from pathlib import Path

import numpy as np

from rollouts import samples
from rollouts.console import FailureLog, check_rewards_work, log_completions
from rollouts.drawing import Draw
from rollouts.metrics import SpreadMonitor
from sharding.hosts import is_main


class Recorder:
    """Writes samples/ and failures.jsonl of a run, prints completions, and warns where rewards teach nothing."""

    def __init__(self, run: Path, log_completions_every: int, monitor: SpreadMonitor, allow_failing: bool = False):
        self._run, self._every = run, log_completions_every
        self._monitor, self._failures = monitor, FailureLog(run / "failures.jsonl")
        self._checked = allow_failing

    def record(self, draw: Draw, number: int, advantages: np.ndarray,
               policy_logps: np.ndarray | None) -> dict[str, str]:
        """Takes the rollouts of the step of this number, and what was trained on (rollouts.samples). What it prints is
        returned, whole, by name. Raises InputError where a reward fails on all of the first ones that it is given,
        unless that is allowed."""
        if not is_main():
            return {}
        samples.write_samples(self._run, number, draw.groups, draw.trained, advantages, policy_logps)
        self._failures.update(number, [*draw.groups, *draw.compared])
        if not self._checked:
            check_rewards_work(draw.groups, self._run / "failures.jsonl")
            self._checked = True
        self._monitor.update(draw.groups, number)
        if self._every and (number - 1) % self._every == 0:
            return {"completions": log_completions(draw.groups, number, count=3)}
        return {}
