"""Figures and comparisons as tables: none without its n, its interval, and what was cut, empty or failed."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

from evals.comparison import Compared, compare
from evals.figures import Figure, figures_of
from evals.samples import Sample
from evals.statistics import Estimate

WIDTH = 120
"""characters of a line that goes to a file"""


def print_figures(evaluated: Mapping[str, Sequence[Sample]], title: str = "", console: Any = None) -> None:
    """A line for each metric of each task, pass@k of its first metric and all answers, and one more for what was cut in
    front."""
    console = console or open_console()
    figures = [figure for samples in evaluated.values() for figure in _shown(figures_of(samples))]
    if figures:
        console.print(figure_table(figures, title))
    for task, samples in evaluated.items():
        cut = sum(sample.truncated_context for sample in samples)
        if cut:
            console.print(f"note: {task}: {cut} of {len(samples)} prompts were longer than the model's context and "
                          f"lost their beginning", highlight=False, markup=False, soft_wrap=True)


def _shown(figures: Sequence[Figure]) -> list[Figure]:
    return [each for each in figures if not each.of_k or (each.of_all and each.metric == figures[0].metric)]


def print_comparison(compared: Sequence[Compared], title: str = "", names: tuple[str, str] = ("before", "after"),
                     console: Any = None) -> None:
    """Three lines for each metric of each task, and below them what each difference may be taken for."""
    console = console or open_console()
    console.print(comparison_table(names[0], {names[1]: compared}, title))
    for each in compared:
        console.print(sentence(each), highlight=False, markup=False, soft_wrap=True)


def print_series(evaluations: Mapping[str, Mapping[str, Sequence[Sample]]], title: str = "",
                 console: Any = None) -> None:
    """Several models, by name, each compared with the first of them. Raises InputError as compare does."""
    (first, before), *rest = evaluations.items()
    later = {name: compare(before, evaluated, (first, name)) for name, evaluated in rest}
    (console or open_console()).print(comparison_table(first, later, title))


def open_console(record: bool = False) -> Any:
    """Of the terminal's width, or of WIDTH where the output is no terminal."""
    from rich.console import Console

    return Console(record=record, width=None if sys.stdout.isatty() else WIDTH)


def figure_table(figures: Sequence[Figure], title: str = "") -> Any:
    table = _table(title, "metric")
    for task in dict.fromkeys(figure.task for figure in figures):
        table.add_row(f"[bold]{escape(task)}[/]")
        for each in figures:
            if each.task == task:
                table.add_row("  " + escape(label(each)), *_cells(each, in_percent(each.estimate)))
    return table


def comparison_table(first: str, later: Mapping[str, Sequence[Compared]], title: str = "") -> Any:
    """A model and one or several `later` ones, by their names, in pairs with it; differences of shares are in points of
    a percent, those beyond noise marked."""
    table = _table(title, "metric", "")
    table.caption = "*: beyond noise"
    rows = [(name, each) for name, compared in later.items() for each in compared]
    for task in dict.fromkeys(each.after.task for _, each in rows):
        table.add_row(f"[bold]{escape(task)}[/]")
        for metric in dict.fromkeys(each.after.metric for _, each in rows if each.after.task == task):
            alike = [(name, each) for name, each in rows if (each.after.task, each.after.metric) == (task, metric)]
            percent = in_percent(*(figure.estimate for _, each in alike for figure in each[:2]))
            before = alike[0][1].before
            table.add_row("  " + escape(label(before)), first, *_cells(before, percent))
            for name, each in alike:
                of = each.difference
                table.add_row("", name, *_cells(each.after, percent))
                table.add_row("", "difference" if of.noise else "[bold]difference *[/]", f"{of.n}",
                              number(of.mean, percent, sign=True), interval(of.low, of.high, percent, sign=True))
            table.add_section()
    return table


def sentence(compared: Compared) -> str:
    """What a difference may be taken for, one line."""
    of, figure = compared.difference, compared.after
    name = f"{figure.task} {label(figure)}"
    if not of.n:
        return f"{name}: nothing to compare, no question has a value from both"
    percent = in_percent(compared.before.estimate, figure.estimate)
    unit, counted = " points" if percent else "", f"{of.wins} up, {of.losses} down, p {p_value(of.p_value)}"
    if of.noise:
        return (f"{name}: within noise ({counted}); so many questions tell a difference of "
                f"{number(of.detectable, percent)}{unit}")
    return f"{name}: {'higher' if of.mean > 0 else 'lower'} by {number(abs(of.mean), percent)}{unit} ({counted})"


def _cells(figure: Figure, percent: bool) -> list[str]:
    of = figure.estimate
    count = f"{of.n} x {figure.num_samples}" if figure.num_samples > 1 else f"{of.n}"
    return [count, number(of.mean, percent), interval(of.low, of.high, percent),
            *(number(share, True) for share in (figure.truncated, figure.empty, figure.failed))]


def label(figure: Figure) -> str:
    """exact_match,strict-match as lm-eval prints it: the filter in brackets, unless it is none."""
    metric, _, of = figure.metric.partition(",")
    return f"{figure.of_k} {metric}".strip() + (f" ({of})" if of and of != "none" else "")


def in_percent(*estimates: Estimate) -> bool:
    """Whether such figures are shares, which are printed in percent."""
    return all(math.isnan(of.mean) or 0 <= of.low <= of.high <= 1 for of in estimates)


def number(value: float | None, percent: bool, sign: bool = False) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{100 * value:{'+' if sign else ''}.1f}" if percent else f"{value:{'+' if sign else ''}.4g}"


def interval(low: float, high: float, percent: bool, sign: bool = False) -> str:
    return "-" if math.isnan(low) else f"{number(low, percent, sign)} to {number(high, percent, sign)}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _table(title: str, *texts: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD,
                  padding=(0, 1, 0, 0), pad_edge=False)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in ("n", "mean", "95 % interval", "truncated %", "empty %", "failed %"):
        table.add_column(name, justify="right", overflow="fold")
    return table
