"""What a run warns of at once, and where it ends, because its steps teach nothing."""

import sys
from collections.abc import Mapping
from typing import Any

from errors import InputError

PATIENCE = 10
"""steps in a row that teach nothing, after which a run ends"""


class Watch:
    """Looks at the metrics of each step; `shown` says whether this process warns."""

    def __init__(self, shown: bool = True) -> None:
        self._idle, self._shown = 0, shown

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Warns of the first of several steps that teach nothing. Raises InputError after PATIENCE of them in a row."""
        found = nothing_learnt(metrics)
        self._idle = self._idle + 1 if found else 0
        if not found:
            return
        what, remedy = found
        if self._idle >= PATIENCE:
            raise InputError(f"step {step}: {what}, the last of {self._idle} steps in a row that taught nothing; "
                             f"{remedy}")
        if self._idle == 1 and self._shown:
            print(f"warning: step {step}: {what}; {remedy} (the run ends after {PATIENCE} such steps in a row)",
                  file=sys.stderr)


def nothing_learnt(metrics: Mapping[str, Any]) -> tuple[str, str] | None:
    """(what is wrong with a step, what to do), or None."""
    if metrics.get("skipped_updates"):
        return ("loss or gradient is not finite, so the update was skipped",
                "lower --learning-rate, use --dtype float32, or look for what the objective divides by or takes the "
                "logarithm of")
    if metrics.get("loss_weight") == 0:
        return ("nothing counts in the loss, whose weight is 0",
                "see that rows have tokens with a loss_mask of 1 (answers that are not cut off, rewards that do not "
                "fail), and that the objective's weight counts them")
    return None
