"""A recipe run over data, stage by stage; ended anywhere, it goes on when the same command is given again.

    DIR/work/NN-STAGE-KEY.jsonl    what a stage has kept, and .json its counts; gone when all is done
    DIR/dropped/STAGE.parquet      what it has dropped
    DIR/cache/STAGE/               answers that it paid for; these stay

KEY is a digest of the data and of the recipe up to the stage, so a recipe that was changed goes on from the first stage
that differs; so does one whose code, or a file that it names, is no longer what it was (dependencies.py). Stages that
decide on each row alone are shared by processes, a range of rows at a time, in order.
"""

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from curation.dependencies import state_of
from curation.ledger import Counts, Places, check_counts, check_removal, drop_writer, hash_place, row_writer
from curation.recipe import Recipe, Step
from curation.rows import FileRows, digest
from curation.runners import Spread, nth_range
from curation.stages import Drop, Row, Stage
from errors import InputError
from files import write_text, writing

SHARE = 1024
"""rows that a process takes at a time"""


def run_stages(rows: Sequence[Row], recipe: Recipe, output: Path, key: str, spread: Spread | None = None,
               tell: Any = lambda line: None, bounded: bool = True) -> tuple[Sequence[Row], list[Counts]]:
    """(the rows that are left, the counts of each stage). `key` is a digest of the data.

    Raises InputError where a stage removes more than it may, or everything, unless it is not `bounded`; what was done
    stays.
    """
    with writing(output):
        for name in ("work", "dropped", "cache"):
            (output / name).mkdir(parents=True, exist_ok=True)
        (output / "counts.json").unlink(missing_ok=True)  # what is in dropped/ will not be of that run
    # what makes no sense is told before any work is done
    stages = [step.make(output / "cache" / step.label, spread) for step in recipe.steps]
    counted, before, state = [], count_rows(rows), ""
    for number, (step, stage) in enumerate(zip(recipe.steps, stages)):
        key, state = digest(key, step.name, step.keys), state_of(step, state)
        work = output / "work" / f"{number:02d}-{step.label}-{key}"
        counts = _finished(work, output / "dropped", step, state, tell)
        if counts is None:
            counts = _run_stage(rows, step, stage, before, output, work, state, spread)
        total = sum(counts.kept.values()) + sum(counts.dropped.values())
        tell("; ".join([f"{step.label}: {sum(counts.kept.values())} of {total} rows are kept", *counts.remarks()]))
        if bounded:
            _check_stage(step, counts, work)
        rows, before = FileRows(_file(work, "jsonl")), counts.after()
        counted.append(counts)
    return rows, counted


def _check_stage(step: Step, counts: Counts, work: Path) -> None:
    """Raises InputError as check_removal. What a teacher failed on is then asked for again the next time."""
    try:
        check_removal(step.label, step.name, counts, step.max_removal)
    except InputError:
        if getattr(step.maker, "makes_rows", False):
            _file(work, "json").unlink()
        raise


def count_rows(rows: Sequence[Row]) -> Counts:
    """What the first stage is given."""
    counts = Counts()
    counts.read.update(rows.counts())
    counts.places_read.update(rows.counts())
    counts.read_sum = sum(itertools.starmap(hash_place, rows.places())) % 2**64
    return counts


def _finished(work: Path, dropped: Path, step: Step, state: str, tell: Any) -> Counts | None:
    """The counts of a stage that was done before, if its files are all there, and what it depends on is as it was."""
    marker = _file(work, "json")
    if not (marker.exists() and _file(work, "jsonl").exists()):
        return None
    import pyarrow.parquet as pq

    found, path = json.loads(marker.read_text(encoding="utf-8")), dropped / f"{step.label}.parquet"
    if found.get("state") != state:
        tell(f"{step.label}: code or a file that it or a stage before it depends on has changed, so it is done again")
        return None
    known = path.exists() and pq.read_schema(path).metadata == {b"key": work.name.encode()}
    return Counts.from_dict(found["counts"]) if known else None


def _file(work: Path, kind: str) -> Path:
    return work.with_name(f"{work.name}.{kind}")


def _run_stage(rows: Sequence[Row], step: Step, stage: Stage, counts: Counts, output: Path, work: Path, state: str,
               spread: Spread | None) -> Counts:
    """Keeps and drops rows into files that appear whole, `counts`, which says what is read, last."""
    _file(work, "json").unlink(missing_ok=True)
    left = Places(counts.places_left)
    shared = spread is not None and len(rows) > SHARE and getattr(step.maker, "by_row", False)
    given = _shared(step, rows, output / "cache" / step.label, spread) if shared else stage(rows)
    with (drop_writer(output / "dropped" / f"{step.label}.parquet", work.name) as drop,
          row_writer(_file(work, "jsonl")) as keep):
        for each in given:
            if isinstance(each, Drop):
                counts.drop(each.row)
                drop(each)
            elif isinstance(each, Row):
                counts.keep(each)
                left.add(each)
                keep(each)
            else:
                raise InputError(f"stage {step.label} gives {str(each)[:80]!r}; a stage gives each row back, as a Row "
                                 f"or a Drop")
    counts.summary = getattr(stage, "summary", dict)()
    check_counts(step.label, counts, getattr(step.maker, "makes_rows", False))
    write_text(_file(work, "json"), json.dumps({"state": state, "counts": counts.as_dict()}))
    return counts


# ------------------------------------------------------------------------------------------------ several processes


class Deciding:
    """What a stage gives for the n-th `size` rows, as JSON."""

    def __init__(self, step: Step, folder: Path, rows: Sequence[Row], size: int):
        self._step, self._folder, self._rows, self._size = step, folder, rows, size

    @functools.cached_property
    def _stage(self) -> Stage:
        return self._step.make(self._folder)

    def __call__(self, number: int) -> bytes:
        some = [self._rows[each] for each in nth_range(number, self._size, len(self._rows))]
        given = [(vars(each.row), each.reason, each.kept_instead) if isinstance(each, Drop) else
                 (vars(each), None, None) for each in self._stage(some)]
        return json.dumps(given, default=str).encode("utf-8")


def _shared(step: Step, rows: Sequence[Row], folder: Path, spread: Spread) -> Iterator[Row | Drop]:
    """What the stage gives, in the order of the rows, by workers that take ranges of them."""
    for found in spread(Deciding(step, folder, rows, SHARE), -(-len(rows) // SHARE)):
        for row, reason, instead in json.loads(found):
            yield Row(**row) if reason is None else Drop(Row(**row), reason, tuple(instead) if instead else None)
