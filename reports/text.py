"""A run, or several, on a terminal: where each stands, its metrics as a table with sparklines, its evaluations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.markup import escape

from evals.tables import open_console, print_comparison, print_figures
from reports.curves import Axes, Chart, charts, read_curves
from reports.run import Run, about, comparisons, differing_flags

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""characters of a sparkline"""


def print_runs(runs: Sequence[Run], console: Any = None) -> None:
    """All of it; without a console, on standard output."""
    console = console or open_console()
    for run in runs:
        _print_run(run, console)
    differing = differing_flags(runs)
    if differing:
        console.print(f"flags that differ ({' | '.join(run.name for run in runs)}):", highlight=False, markup=False)
    for name, values in differing.items():
        console.print(f"{name}: {' | '.join(values)}", highlight=False, markup=False)
    found, notes = comparisons(runs)
    for each in found:
        print_comparison(each.compared, escape(each.title), tuple(map(escape, each.names)), console)
    for run in runs if not found else ():
        for name, evaluated in run.evaluations.items():
            print_figures(evaluated, escape(f"{run.name}: {name}"), console)
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def _print_run(run: Run, console: Any) -> None:
    tokens, hours = Axes(run.metrics).last
    console.print(f"{run.name}: {run.steps:,} steps, {tokens:,} tokens, {hours:.3g} hours of training",
                  highlight=False, markup=False)
    for line in about(run.launches[-1]) if run.launches else ():
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
    main, further = charts([read_curves(run, 0)])
    console.print(_table([*main, *further]))
    flat = ", ".join(f"{chart.title} {chart.curves[0].values[0]:g}" for chart in further if chart.is_flat)
    if flat:
        console.print(f"always the same: {flat}", style="dim", highlight=False, markup=False)


def _table(found: Sequence[Chart]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("metric", overflow="fold")
    for name in ("first", "last", "least", "largest"):
        table.add_column(name, justify="right")
    table.add_column("over the steps")
    for chart in found:
        for curve in chart.curves if not chart.is_flat else ():
            finite = curve.values[~np.isnan(curve.values)]
            figures = [*curve.values[[0, -1]], *((finite.min(), finite.max()) if len(finite) else ())]
            table.add_row(escape(curve.name), *(f"{value:.4g}" for value in figures), sparkline(curve.values))
    return table


def sparkline(values: np.ndarray, width: int = WIDTH) -> str:
    """The means of `width` equal stretches as bars between their least and their largest; a blank where no value is
    finite."""
    parts = np.array_split(values, min(width, len(values)))
    means = np.asarray([part[~np.isnan(part)].mean() if (~np.isnan(part)).any() else np.nan for part in parts])
    if np.isnan(means).all():
        return " " * len(means)
    low, high = np.nanmin(means), np.nanmax(means)
    places = (means - low) / (high - low or 1) * (len(BARS) - 1)
    return "".join(" " if np.isnan(place) else BARS[round(place)] for place in places)
