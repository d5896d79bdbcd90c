"""Metrics as curves: over steps, tokens and hours, thinned so that a page of 100,000 steps opens at once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reports.run import Run

MAIN = ("reward", "loss", "learning_rate", "grad_norm", "tokens_per_second")
"""what is looked at first, in this order"""
POINTS = 1000
"""of a curve: the least and the largest value in each of half as many stretches"""
NOT_DRAWN = ("step", "num_tokens")


class Curve(NamedTuple):
    """One metric of one run."""

    run: int
    name: str
    steps: np.ndarray
    values: np.ndarray
    """NaN where a number was not finite"""

    @property
    def is_flat(self) -> bool:
        return bool((self.values == self.values[0]).all())


def read_curves(run: Run, number: int) -> dict[str, Curve]:
    """Metric -> its curve."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in run.metrics:
        for name, value in line.items():
            if name not in NOT_DRAWN:
                steps, values = found.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(float("nan") if value is None else value)
    return {name: Curve(number, name, np.asarray(steps), np.asarray(values, np.float64))
            for name, (steps, values) in found.items()}


class Axes:
    """Where a run stood after each step, in tokens and in hours of training (pauses between starts not among them)."""

    def __init__(self, metrics: Sequence[Mapping[str, Any]]):
        trained = [line for line in metrics if "num_tokens" in line]
        self._steps = np.asarray([0, *(line["step"] for line in trained)])
        self._tokens = np.asarray([0, *(line["num_tokens"] for line in trained)])
        self._hours = np.cumsum([0.0, *(line.get("step_seconds") or 0 for line in trained)]) / 3600

    def at(self, steps: np.ndarray) -> dict[str, list[float]]:
        """What is on each axis for these steps."""
        rows = np.searchsorted(self._steps, steps, side="right") - 1
        return {"step": steps.tolist(), "tokens": self._tokens[rows].tolist(),
                "hours": [float(f"{hours:.6g}") for hours in self._hours[rows]]}

    @property
    def last(self) -> tuple[int, float]:
        """(tokens, hours) in all."""
        return int(self._tokens[-1]), float(self._hours[-1])


def thin(values: np.ndarray, points: int = POINTS) -> np.ndarray:
    """The places to draw: all of them, or of each of points / 2 equal stretches the least and the largest value, and
    the first and the last place, so that no peak is lost. A stretch without a finite value keeps a gap."""
    if len(values) <= points:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), points // 2 + 1).astype(int)
    low, high = np.where(np.isnan(values), np.inf, values), np.where(np.isnan(values), -np.inf, values)
    kept = {0, len(values) - 1}
    for start, stop in zip(edges, edges[1:]):
        kept |= {start + int(low[start:stop].argmin()), start + int(high[start:stop].argmax())}
    return np.asarray(sorted(kept))


class Chart(NamedTuple):
    """Curves that are drawn together."""

    title: str
    curves: list[Curve]

    @property
    def is_flat(self) -> bool:
        """Whether nothing is to be seen: each curve has one value."""
        return all(curve.is_flat for curve in self.curves)


def charts(curves: Sequence[Mapping[str, Curve]]) -> tuple[list[Chart], list[Chart]]:
    """(main charts, further ones) of several runs' curves. A held-out metric is drawn with its namesake; all metrics of
    benchmarks (eval/TASK/METRIC) are drawn together, and so are all rewards (rewards/NAME/mean)."""
    named: dict[str, list[Curve]] = {}
    for of_run in curves:
        for name, curve in of_run.items():
            named.setdefault(_chart_of(name, of_run), []).append(curve)
    made = {title: Chart(title, sorted(each, key=lambda curve: (curve.run, curve.name.startswith("eval/"))))
            for title, each in named.items()}
    main = [title for title in (*MAIN[:2], "rewards", "benchmarks", *MAIN[2:]) if title in made]
    return [made[title] for title in main], [made[title] for title in sorted(made.keys() - {*main})]


def _chart_of(name: str, of_run: Mapping[str, Curve]) -> str:
    plain = name.removeprefix("eval/")
    if plain.startswith("rewards/") and plain.endswith("/mean"):
        return "rewards"
    if plain in MAIN or plain in of_run:
        return plain
    return "benchmarks" if "/" in plain else name


def as_traces(chart: Chart, axes: Sequence[Axes]) -> dict[str, Any]:
    """A chart as page.js draws it."""
    traces, lost = [], 0
    for curve in chart.curves:
        places = thin(curve.values)
        lost += int(np.isnan(curve.values).sum())
        values = [None if np.isnan(value) else float(f"{value:.6g}") for value in curve.values[places]]
        traces.append({"run": curve.run, "name": curve.name, "x": axes[curve.run].at(curve.steps[places]), "y": values})
    return {"title": chart.title, "traces": traces, "lost": lost}
