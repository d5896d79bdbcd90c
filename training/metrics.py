"""metrics.jsonl: one line a step, whole lines only, and none twice after a resume."""

import json
from pathlib import Path
from typing import Any

from batch import COUNT
from files import write_text


class MetricsFile:
    """Appends to metrics.jsonl; opening it at a step drops what a killed run wrote after that step.

    `num_tokens`, and what a step gives as count/NAME, are written as sums since the first step, the latter as NAME.
    """

    def __init__(self, run: Path, step: int):
        self.path = run / "metrics.jsonl"
        kept = [line for line in read_metrics(run) if line["step"] <= step] if step else []
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.totals = {name: value for line in kept for name, value in line.items() if type(value) is int}

    def write(self, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """One line, which is returned; numbers that JSON has no word for (NaN, infinity) become null."""
        values = dict(self._summed(name, value) for name, value in values.items())
        line = {"step": step} | {name: _plain(value) for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return values

    def _summed(self, name: str, value: Any) -> tuple[str, Any]:
        """What is counted, with its sum since the first step; all else as it is."""
        if name != "num_tokens" and not name.startswith(COUNT):
            return name, value
        name = name.removeprefix(COUNT)
        self.totals[name] = self.totals.get(name, 0) + value
        return name, self.totals[name]


def _plain(value: Any) -> Any:
    number = value if isinstance(value, int) else float(value)
    return number if abs(number) < float("inf") else None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; a last line cut off by a kill is passed over."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
