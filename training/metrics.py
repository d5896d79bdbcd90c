"""metrics.jsonl: one line a step, whole lines only, and none twice after a resume."""

import json
from pathlib import Path
from typing import Any

from data.reading import COUNTS
from training.runs import write_atomically

TOTALS = ("num_tokens", *COUNTS)
"""written as sums since the first step"""


class MetricsFile:
    """Appends to metrics.jsonl; opening it at a step drops what a killed run wrote after that step."""

    def __init__(self, run: Path, step: int):
        self.path = run / "metrics.jsonl"
        kept = [line for line in read_metrics(run) if line["step"] <= step] if step else []
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.totals = {name: max((line.get(name, 0) for line in kept), default=0) for name in TOTALS}

    def write(self, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """One line, which is returned; numbers that JSON has no word for (NaN, infinity) become null."""
        for name in TOTALS:
            self.totals[name] += values.get(name, 0)
        values = values | {name: self.totals[name] for name in TOTALS if name in values}
        line = {"step": step} | {name: _plain(value) for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return values


def _plain(value: Any) -> Any:
    number = value if isinstance(value, int) else float(value)
    return number if abs(number) < float("inf") else None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; a last line cut off by a kill is passed over."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
