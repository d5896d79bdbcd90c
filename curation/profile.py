"""What a recipe does to data, before it is applied and after: profile.json, from which report.html is drawn.

A dry run does every stage: those without a model on all rows, and from the first one with a model on, on a sample of
the rows that are left. No bound ends it. What it has done on all rows, and what teachers have answered, is gone on from
when the recipe is applied; that is refused once the data is no longer that of the profile.
"""

import array
import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curation.ledger import Counts
from curation.recipe import Recipe, Step
from curation.rows import digest
from curation.run import run_stages
from curation.runners import Spread
from curation.stages import Row
from curation.words import strings
from errors import InputError
from files import write_text

EXAMPLES = 6
"""rows of each stage that are shown"""
BINS = 24
MAX_GROUPS = 12
"""values of a note that are told apart (languages, teachers)"""


class Done(NamedTuple):
    """What stages have done."""

    left: Sequence[Row]
    counts: list[Counts]
    rows_in: list[int]
    """rows of a sample that each stage was given at first; 0 where it was given all"""


def dry_run(rows: Sequence[Row], recipe: Recipe, output: Path, key: str, sample_rows: int,
            spread: Spread | None = None, tell: Callable[[str], None] = lambda line: None) -> Done:
    """Runs the stages without their bounds, from the first with a model on with `sample_rows` rows. Raises InputError
    where a recipe has been applied already, whose ledger this would overwrite."""
    if (output / "counts.json").exists():
        raise InputError(f"--output-dir {output} holds what a recipe was applied to; give --dry-run another one")
    cut = next((number for number, step in enumerate(recipe.steps) if needs_model(step)), len(recipe.steps))
    done = Done(rows, [], [])
    if cut:
        left, counts = run_stages(rows, Recipe(recipe.steps[:cut]), output, key, spread, tell, bounded=False)
        done = Done(left, counts, [0] * cut)
    if cut == len(recipe.steps):
        return done
    sample, rest = Spaced(done.left, sample_rows), recipe.steps[cut:]
    tell(f"the stages from {rest[0].label} on are tried on {len(sample)} of {len(done.left)} rows")
    own_key = key if len(sample) == len(rows) else digest(key, sample_rows, recipe.as_written())
    left, counts = run_stages(sample, Recipe(rest), output, own_key, spread, tell, bounded=False)
    return Done(left, done.counts + counts, done.rows_in + [len(sample)] * len(rest))


def needs_model(step: Step) -> bool:
    return bool({"model", "rewards"} & set(inspect.signature(step.maker).parameters))


class Spaced(Sequence):
    """`count` rows at even distances, or all of fewer."""

    def __init__(self, rows: Sequence[Row], count: int):
        self._rows = rows
        self._numbers = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)).tolist()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Row:
        return self._rows[self._numbers[number]]

    def counts(self) -> dict[str, int]:
        """Rows by source."""
        return dict(Counter(row.source for row in self))

    def places(self) -> Iterator[tuple[str, int, int]]:
        """(source, index, sample) of every row."""
        return ((*row.place, row.sample) for row in self)


def write_profile(output: Path, rows: Sequence[Row], recipe: Recipe, key: str, done: Done, applied: bool) -> None:
    """profile.json: fingerprint, recipe, what each stage removed of each source with examples, and histograms of rows
    before and after."""
    stages = [_describe(step, counts, rows_in, output / "dropped" / f"{step.label}.parquet")
              for step, counts, rows_in in zip(recipe.steps, done.counts, done.rows_in)]
    before, after = measure(rows), measure(done.left)
    profile = {"data": key, "applied": applied, "recipe": recipe.as_written(), "rows": len(rows),
               "left": len(done.left), "stages": stages, "histograms": histograms(before, after),
               "groups": {name: _shares(groups) for name, groups in after.groups.items()}}
    write_text(output / "profile.json", json.dumps(profile, indent=1, ensure_ascii=False, default=str))


def check_profile(output: Path, key: str) -> None:
    """Raises InputError where the data is not what a profile was made of."""
    path = output / "profile.json"
    if not path.exists():
        return
    try:
        known = str(json.loads(path.read_text(encoding="utf-8"))["data"])
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{path} is not as --dry-run left it; profile the data again with --dry-run, or remove it"
                         ) from None
    if known != key:
        raise InputError(f"--data is not what {path} was made of (fingerprint {key[:12]}, there {known[:12]}); profile "
                         f"it again with --dry-run, or take another --output-dir")


def _describe(step: Step, counts: Counts, rows_in: int, dropped: Path) -> dict[str, Any]:
    removal = counts.removal()
    sources = {source: {"read": counts.read[source], "made": counts.made[source], "dropped": counts.dropped[source],
                        "kept": counts.kept[source], "removal": removal.get(source, 0.0)} for source in counts.read}
    return {"stage": step.label, "keys": step.keys, "max_removal": step.max_removal, "sample": rows_in,
            "over": [source for source, share in removal.items() if share > step.max_removal],
            "sources": sources, "summary": counts.summary, "examples": _examples(dropped)}


def _examples(path: Path) -> list[dict[str, Any]]:
    """Dropped rows at even distances in the first of the file's groups of rows."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    rows = file.read_row_group(0).to_pylist() if file.num_row_groups else []
    return [{"source": row["source"], "row": row["row"], "reason": row["reason"], "kept_instead": row["kept_instead"],
             "text": "\n".join(strings(json.loads(row["record"])))[:600]} for row in Spaced(rows, EXAMPLES)]


# ------------------------------------------------------------------------------------------------ histograms

class Measures(NamedTuple):
    """Of rows: numbers by name, 8 bytes each, and how many rows have each value of a note that is a string."""

    numbers: dict[str, array.array]
    groups: dict[str, Counter]


def measure(rows: Iterable[Row]) -> Measures:
    """Of each row its words, characters and messages, and each note that is a number or a string."""
    found = Measures({}, {})
    for row in rows:
        text = row.text
        chat = row.record.get("messages", row.record.get("conversations"))
        own = {"characters": len(text), "words": len(text.split())} | (
            {"messages": len(chat)} if isinstance(chat, list) else {})
        for name, value in (own | row.notes).items():
            if isinstance(value, str):
                found.groups.setdefault(name, Counter())[value] += 1
            elif type(value) in (int, float) and math.isfinite(value):
                found.numbers.setdefault(name, array.array("d")).append(value)
    return found


def histograms(before: Measures, after: Measures) -> dict[str, dict[str, list[float]]]:
    """Counts [bins] of every number by edges [bins + 1] that both have, evenly spaced in the logarithm where numbers
    are positive and span a factor of 100."""
    found = {}
    for name in dict.fromkeys([*before.numbers, *after.numbers]):
        values = [np.array(each.numbers.get(name, ()), float) for each in (before, after)]
        edges = _edges(np.concatenate(values))
        found[name] = {"edges": edges.tolist()} | {
            when: np.histogram(each, edges)[0].tolist() for when, each in zip(("before", "after"), values) if len(each)}
    return found


def _edges(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low - 0.5, high + 0.5])
    positive = values[values > 0]
    if low >= 0 and len(positive) and high / positive.min() >= 100:
        edges = np.geomspace(positive.min(), high, BINS + 1)
        return np.concatenate([[0.0], edges]) if low == 0 else edges
    return np.linspace(low, high, BINS + 1)


def _shares(groups: Counter) -> dict[str, int]:
    """Rows by value, the most frequent first, the rest together."""
    counts = groups.most_common()
    rest = sum(count for _, count in counts[MAX_GROUPS:])
    return dict(counts[:MAX_GROUPS]) | ({"others": rest} if rest else {})
