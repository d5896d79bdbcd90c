"""Kept + dropped = read + made, counted again from the files, by nothing that the run itself used."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from errors import InputError, as_json

Place = tuple[str, int, int]
"""(source, row, sample)"""


def recount(output: Path, sizes: Mapping[str, int]) -> str:
    """A line that says what is there; `sizes` are the rows of each source. Raises InputError where rows are lost or
    doubled, or counts.json says otherwise."""
    counts = _read_counts(output / "counts.json")
    kept = Counter(_kept(output / counts["kept"]))
    dropped = {stage["stage"]: Counter(_dropped(output, stage["stage"])) for stage in counts["stages"]}
    _check_numbers(counts, kept, dropped)
    places = sum(dropped.values(), Counter(kept))
    _check_places(places, sizes)
    made = places.total() - sum(sizes.values())
    if made != sum(sum(stage["made"].values()) for stage in counts["stages"]):
        raise InputError(f"{output}: {places.total()} rows are kept or dropped, {sum(sizes.values())} are in the data, "
                         f"and the difference is not what stages made; curate again")
    return (f"{sum(sizes.values())} read + {made} made = {kept.total()} kept + {places.total() - kept.total()} "
            f"dropped; no row is lost, and none is there twice")


def _check_numbers(counts: Mapping[str, Any], kept: Counter, dropped: Mapping[str, Counter]) -> None:
    """Raises InputError where the files of a stage have other numbers than counts.json."""
    for stage in counts["stages"]:
        found = Counter(source for source, _, _ in dropped[stage["stage"]].elements())
        if found != Counter(stage["dropped"]):
            raise InputError(f"dropped/{stage['stage']}.parquet has {dict(found)} rows, and counts.json says "
                             f"{stage['dropped']}; curate again")
    found = Counter(source for source, _, _ in kept.elements())
    if found != Counter(counts["stages"][-1]["kept"]):
        raise InputError(f"{counts['kept']} has {dict(found)} rows, and counts.json says "
                         f"{counts['stages'][-1]['kept']}; curate again")


def _check_places(places: Counter, sizes: Mapping[str, int]) -> None:
    """Raises InputError for a row that is there twice or not at all, or is of no source."""
    twice = next((place for place, count in places.items() if count > 1), None)
    if twice:
        raise InputError(f"{twice[0]} row {twice[1]}, sample {twice[2]}, is there {places[twice]} times; curate again")
    rows = {(source, row) for source, row, _ in places}
    lost = next(((source, row) for source, size in sizes.items() for row in range(size) if (source, row) not in rows),
                None)
    if lost:
        raise InputError(f"{lost[0]} row {lost[1]} is neither kept nor dropped; curate again")
    other = next((place for place in rows if place[1] >= sizes.get(place[0], 0)), None)
    if other:
        raise InputError(f"{other[0]} row {other[1]} is no row of --data; give the sources that were curated")


def _kept(path: Path) -> Iterator[Place]:
    from data.sources import DataSource, open_source

    source = open_source(DataSource(str(path)))
    for index in range(len(source)):
        row = source[index]
        yield _place(row.get("source"), row.get("row"), row.get("sample", 0), source.place(index))


def _dropped(output: Path, stage: str) -> Iterator[Place]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = output / "dropped" / f"{stage}.parquet"
    if not path.exists():
        raise InputError(f"{path} is missing; curate again")
    try:
        for batch in pq.ParquetFile(path).iter_batches(columns=["source", "row", "sample"]):
            for row in batch.to_pylist():
                yield _place(row.get("source"), row.get("row"), row.get("sample"), str(path))
    except (OSError, pa.ArrowException) as error:
        text = " ".join(str(error).split())[:150]
        raise InputError(f"{path}: no sound Parquet file ({text}); curate again") from None


def _place(source: Any, row: Any, sample: Any, where: str) -> Place:
    """Raises InputError for values that say of no row where it is from."""
    if not (isinstance(source, str) and type(row) is int and type(sample) is int and row >= 0 and sample >= 0):
        raise InputError(f"{where}: source {as_json(source)[:60]}, row {as_json(row)[:60]} and sample "
                         f"{as_json(sample)[:60]} name no row of the data; curate again")
    return source, row, sample


def _read_counts(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sound = isinstance(found["kept"], str) and all(map(_is_stage, found["stages"])) and found["stages"]
    except (OSError, ValueError, LookupError, TypeError):
        sound = False
    if not sound:
        raise InputError(f"{path} cannot be read; give the --output-dir of a scripts.curate that has ended")
    return found


def _is_stage(found: dict[str, Any]) -> bool:
    return isinstance(found["stage"], str) and all(type(count) is int for name in ("made", "dropped", "kept")
                                                   for count in dict(found[name]).values())
