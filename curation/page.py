"""report.html: a profile as a page for people, in one file without scripts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from files import write_text
from reports.document import document
from reports.document import escape as _text

STYLE = """
body { overflow-wrap: anywhere } th, .number, .share { overflow-wrap: normal; white-space: nowrap }
.bar { display: inline-block; height: .7rem; background: var(--bar); vertical-align: middle }
.over .bar { background: var(--bad) } svg { border-bottom: 1px solid var(--line) }
.before { fill: var(--before); color: var(--before) } .after { fill: var(--good); color: var(--good) }
.charts { display: flex; flex-wrap: wrap; gap: 1.2rem } .charts figure { margin: 0 } figcaption { font-size: .85rem }
"""
WIDTH, HEIGHT = 300, 110


def write_page(output: Path) -> None:
    """Draws DIR/profile.json as DIR/report.html. Raises InputError where it cannot be written."""
    profile = json.loads((output / "profile.json").read_text(encoding="utf-8"))
    done = "applied" if profile["applied"] else "tried (--dry-run)"
    body = [f"<h1>Curation, {done}</h1>", f"<p>{profile['rows']:,} rows are read and {profile['left']:,} left. "
            f"Fingerprint of the data: <code>{profile['data'][:16]}</code></p>", _sample_note(profile),
            "<h2>What each stage removes</h2>", _removal(profile["stages"]),
            "<h2>Rows before and after</h2>", _histograms(profile["histograms"], any(
                stage["sample"] for stage in profile["stages"])), _groups(profile["groups"]),
            "<h2>What each stage drops</h2>", *map(_examples, profile["stages"]),
            "<h2>Recipe</h2>", f"<pre>{_text(yaml.safe_dump(profile['recipe'], sort_keys=False))}</pre>"]
    write_text(output / "report.html", document("Curation", "\n".join(body), STYLE))


def _sample_note(profile: Mapping[str, Any]) -> str:
    """Where stages were tried on a sample, which."""
    sampled = [stage for stage in profile["stages"] if stage["sample"]]
    return f"<p>From {_text(sampled[0]['stage'])} on, stages were tried on {sampled[0]['sample']:,} rows.</p>" \
        if sampled else ""


def _removal(stages: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th{' class=number' if number else ''}>{name}" for name, number in (
        ("stage", 0), ("source", 0), ("read", 1), ("made", 1), ("dropped", 1), ("kept", 1), ("rows removed", 0),
        ("at most", 1)))
    rows = [_removal_row(stage, source, counts) for stage in stages for source, counts in stage["sources"].items()]
    return f"<table><tr>{head}{''.join(rows)}</table>"


def _removal_row(stage: Mapping[str, Any], source: str, counts: Mapping[str, Any]) -> str:
    numbers = "".join(f"<td class=number>{counts[name]:,}" for name in ("read", "made", "dropped", "kept"))
    share = counts["removal"]
    over = " over" if source in stage["over"] else ""
    return (f"<tr><td>{_text(stage['stage'])}<td>{_text(source)}{numbers}<td class='share{over}'>"
            f"<span class=bar style='width:{share * 8:.2f}rem'></span> {share:.1%}"
            f"<td class=number>{stage['max_removal']:.0%}")


def _histograms(histograms: Mapping[str, Mapping[str, list[float]]], sampled: bool) -> str:
    """`sampled`: the rows after are some of those that are left, so both are drawn as shares of their own."""
    shares = ", each as a share of its own rows, as those after are a sample" if sampled else ""
    key = f"<p class=faint><span class=before>&#9632;</span> before <span class=after>&#9632;</span> after{shares}</p>"
    drawn = (_histogram(name, each, sampled) for name, each in histograms.items())
    return f"{key}<div class=charts>{''.join(drawn)}</div>"


def _histogram(name: str, counts: Mapping[str, list[float]], sampled: bool) -> str:
    """Bars of what was before, and those of what is left in front of them."""
    edges, series = counts["edges"], {when: counts[when] for when in ("before", "after") if when in counts}
    totals = {when: max(1, sum(each)) if sampled else 1 for when, each in series.items()}
    highest = max([each / totals[when] for when in series for each in series[when] if each], default=1)
    width = WIDTH / (len(edges) - 1)
    bars = [_bar(place * width, width - 1, HEIGHT * count / totals[when] / highest, when,
                 f"{_number(edges[place])} to {_number(edges[place + 1])}: {count:,} {when}")
            for when in series for place, count in enumerate(series[when]) if count]
    uneven = len(edges) > 2 and edges[-1] - edges[-2] > 2 * (edges[2] - edges[1])
    return (f"<figure><svg width='{WIDTH}' height='{HEIGHT}' viewBox='0 0 {WIDTH} {HEIGHT}'>{''.join(bars)}</svg>"
            f"<figcaption>{_text(name)}, {_range(edges)}{' (logarithmic)' if uneven else ''}</figcaption></figure>")


def _range(edges: Sequence[float]) -> str:
    """All values of a histogram; of one bin, which is as wide on either side, the value in its middle."""
    return _number(sum(edges) / 2) if len(edges) == 2 else f"{_number(edges[0])} to {_number(edges[-1])}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _bar(x: float, width: float, height: float, when: str, title: str) -> str:
    return (f"<rect x='{x:.1f}' y='{HEIGHT - height:.1f}' width='{width:.1f}' height='{height:.1f}' class={when}>"
            f"<title>{title}</title></rect>")


def _groups(groups: Mapping[str, Mapping[str, int]]) -> str:
    return "".join(f"<p>{_text(name)}: {', '.join(f'{_text(value)} {count:,}' for value, count in counts.items())}</p>"
                   for name, counts in groups.items())


def _examples(stage: Mapping[str, Any]) -> str:
    shown = [f"<details><summary>{_text(each['source'])} row {each['row']}: {_text(each['reason'])}{_instead(each)}"
             f"</summary><pre>{_text(each['text'])}</pre></details>" for each in stage["examples"]]
    return f"<h3>{_text(stage['stage'])}</h3>{''.join(shown) or '<p class=faint>nothing</p>'}"


def _instead(example: Mapping[str, Any]) -> str:
    kept = example["kept_instead"]
    return f" <span class=faint>({_text(kept['source'])} row {kept['row']} is kept)</span>" if kept else ""
