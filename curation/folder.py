"""A curated folder: of one run at a time, and known to be done by its counts.json, which is written last."""

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from curation.dependencies import state_of
from curation.ledger import Counts
from curation.recipe import Recipe
from curation.rows import digest
from files import write_text


def end(output: Path, kept: Path, key: str, recipe: Recipe, counts: Sequence[Counts]) -> None:
    """The run is done: what it has no use for goes, and counts.json says so."""
    own = {f"{step.label}.parquet" for step in recipe.steps}
    for path in (output / "dropped").iterdir():
        if path.name not in own:  # of another recipe, or of a stage that was ended
            path.unlink()
    for other in {"kept.jsonl", "kept.parquet"} - {kept.name}:
        (output / other).unlink(missing_ok=True)
    write_counts(output, kept, key, recipe, counts)
    shutil.rmtree(output / "work")


def run_key(key: str, recipe: Recipe) -> str:
    """What a run is known by: data, stages, bounds, and what stages depend on besides."""
    states = itertools.accumulate(recipe.steps, lambda before, step: state_of(step, before), initial="")
    return digest(key, [step[:3] for step in recipe.steps], list(states))


def write_counts(output: Path, kept: Path, key: str, recipe: Recipe, counts: Sequence[Counts]) -> None:
    """counts.json: what scripts.recount counts again."""
    stages = [{"stage": step.label, "name": step.name, "keys": step.keys, "max_removal": step.max_removal}
              | each.as_dict() for step, each in zip(recipe.steps, counts)]
    found = {"data": key, "run": run_key(key, recipe), "kept": kept.name, "stages": stages}
    write_text(output / "counts.json", json.dumps(found, indent=1, default=str))


def finished(output: Path, kept: Path, run: str) -> bool:
    """Whether this very run has been done to its end."""
    path = output / "counts.json"
    if not (path.exists() and kept.exists()):
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return (found["run"], found["kept"]) == (run, kept.name)
    except (ValueError, LookupError, TypeError):  # not as it was left: the run is done anew
        return False
