"""A run, or several beside each other, as one page that loads nothing: flags, tables, curves, samples."""

import importlib.resources
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from errors import InputError
from evals.figures import Figure, figures_of
from evals.tables import in_percent, interval, label, number, sentence
from files import write_text
from reports import samples
from reports.curves import Axes, as_traces, charts, read_curves
from reports.document import as_data, document, escape
from reports.run import Comparison, Run, about, comparisons, differing_flags, versions

STYLE = """
body { max-width: 84rem } .scroll { overflow-x: auto } .scroll td:first-child { overflow-wrap: anywhere }
td.number, th.number { white-space: nowrap }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1rem }
.chart { min-height: 17rem; min-width: 0 } .chart h3 { margin: 0 } .plot { height: 15rem }
.controls { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: center; margin: .6rem 0 }
input[type=search] { font: inherit; width: min(30rem, 100%); padding: .3rem .5rem; color: inherit;
  background: var(--tint); border: 1px solid var(--line) }
.sample { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 0 1rem;
  border-bottom: 1px solid var(--line); padding: .5rem 0 }
.told { display: inline-block; max-width: 16rem; white-space: normal; text-align: left }
.sample pre { margin: .1rem 0 }
"""


def write_page(runs: Sequence[Run], output: Path) -> None:
    """Raises InputError where it cannot be written, or plotly, which draws the curves, is not installed."""
    write_text(output, page(runs, read_plotly()))


def read_plotly() -> str:
    """The text of plotly.min.js (MIT), which the plotly package carries."""
    if importlib.util.find_spec("plotly") is None:
        raise InputError("a report's curves are drawn by plotly, which is not installed; pip install plotly, or give "
                         "scripts.report --text")
    return (importlib.resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def page(runs: Sequence[Run], plotly: str) -> str:
    """The page's text; `plotly` is its library's."""
    title = ", ".join(run.name for run in runs)
    main, further = charts([read_curves(run, place) for place, run in enumerate(runs)])
    axes = [Axes(run.metrics) for run in runs]
    drawn = [chart for chart in further if not chart.is_flat]
    data = {"runs": [run.name for run in runs], "main": [as_traces(chart, axes) for chart in main],
            "further": [as_traces(chart, axes) for chart in drawn], "samples": samples.as_json(runs)}
    body = [f"<h1>{escape(title)}</h1>", _runs(runs, axes), *_differences(runs), *_evaluations(runs), CURVES,
            _flat([chart for chart in further if chart.is_flat]), SAMPLES if data["samples"] else "",
            "<h2>Flags</h2>", *map(_flags, runs), as_data(data, "data")]
    script = (importlib.resources.files("reports") / "page.js").read_text(encoding="utf-8")
    return document(title, "\n".join(body), STYLE, (plotly, script))


CURVES = """<h2>Curves</h2>
<div class=controls><label>over <select id=axis><option value=step>steps<option value=tokens>tokens<option
value=hours>hours of training</select></label>
<label>smoothed <input id=smooth type=range min=0 max=0.98 step=0.02 value=0></label>
<label><input id=log type=checkbox> logarithmic</label></div>
<div class=charts id=main></div>
<details id=more><summary>All other metrics</summary><div class=charts id=further></div></details>"""

SAMPLES = """<h2>Samples</h2>
<div class=controls><select id=kind></select><input id=search type=search placeholder="search prompts and answers">
<span id=count class=faint></span></div><div id=samples></div>"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML already; all columns but the first hold numbers."""
    kind = ["", *[" class=number"] * (len(head) - 1)]
    top = "".join(f"<th{each}>{escape(name)}" for name, each in zip(head, kind))
    body = "".join("<tr>" + "".join(f"<td{each}>{cell}" for cell, each in zip(row, kind)) for row in rows)
    return f"<div class=scroll><table><tr>{top}{body}</table></div>"


def _runs(runs: Sequence[Run], axes: Sequence[Axes]) -> str:
    """Where each run stands, and what started it."""
    rows = []
    for run, axis in zip(runs, axes):
        tokens, hours = axis.last
        rows.append([escape(run.name), f"{run.steps:,} of {_planned(run)}", f"{tokens:,}", f"{hours:.3g}",
                     f"{len(run.launches)}"])
    last = [run.launches[-1] for run in runs if run.launches]
    starts = [f"<pre>{escape(chr(10).join(about(each)))}</pre><p class=faint>{escape(each['time'])}, "
              f"{escape(versions(each))}</p>" for each in last]
    return _table(("run", "steps", "tokens", "hours of training", "starts"), rows) + "".join(starts)


def _planned(run: Run) -> str:
    steps = run.flags.get("max_steps")
    return f"{steps:,}" if steps else "as many as --max-tokens gives"


def _differences(runs: Sequence[Run]) -> list[str]:
    if len(runs) < 2:
        return []
    rows = [[escape(name), *map(escape, values)] for name, values in differing_flags(runs).items()]
    return ["<h2>Flags that differ</h2>", _table(("flag", *(run.name for run in runs)), rows)
            if rows else "<p>none but --output-dir</p>"]


def _evaluations(runs: Sequence[Run]) -> list[str]:
    """Figures of the last evaluations, and comparisons in pairs; none without."""
    judged = [run for run in runs if run.evaluations]
    if not judged:
        return []
    found, notes = comparisons(runs)
    tables = [f"<h3>{escape(each.title)}</h3>{_comparison(each)}" for each in found]
    for run in judged:
        name, evaluated = [*run.evaluations.items()][-1]
        figures = [figure for each in evaluated.values() for figure in figures_of(each)]
        tables.append(f"<h3>{escape(f'{run.name}: {name}' if len(runs) > 1 else name)}</h3>{_figures(figures)}")
    return ["<h2>Evaluation</h2>", "<p class=faint>means over questions, with 95 % intervals; differences in pairs</p>",
            *tables, *(f"<p class=faint>{escape(note)}</p>" for note in notes)]


def _comparison(found: Comparison) -> str:
    rows = []
    for each in found.compared:
        percent, of = in_percent(each.before.estimate, each.after.estimate), each.difference
        mark = "span" if of.noise else "strong"  # and no colour: a loss is better where it is lower
        rows.append([escape(f"{each.after.task} {label(each.after)}"), f"{of.n}",
                     *(_with_interval(figure.estimate, percent) for figure in each[:2]),
                     f"<{mark}>{_with_interval(of, percent, sign=True)}</{mark}>",
                     f"<span class=told>{escape(sentence(each).rpartition(': ')[2])}</span>"])
    return _table(("metric", "n", *found.names, "difference", ""), rows)


def _figures(figures: Sequence[Figure]) -> str:
    rows = [[escape(f"{each.task} {label(each)}"),
             f"{each.estimate.n}" + (f" x {each.num_samples}" if each.num_samples > 1 else ""),
             _with_interval(each.estimate, in_percent(each.estimate)),
             *(number(share, True) for share in (each.truncated, each.empty, each.failed))] for each in figures]
    return _table(("metric", "n", "mean", "truncated %", "empty %", "failed %"), rows)


def _with_interval(of: Any, percent: bool, sign: bool = False) -> str:
    return f"{number(of.mean, percent, sign)} <span class=faint>[{interval(of.low, of.high, percent, sign)}]</span>"


def _flat(found: Sequence[Any]) -> str:
    """Metrics that never changed, in a line."""
    told = ", ".join(f"{chart.title} {chart.curves[0].values[0]:g}" for chart in found)
    return f"<p class=faint>always the same: {escape(told)}</p>" if told else ""


def _flags(run: Run) -> str:
    text = yaml.safe_dump(dict(run.flags), sort_keys=False, allow_unicode=True)
    return f"<details><summary>{escape(run.name)}</summary><pre>{escape(text)}</pre></details>"
