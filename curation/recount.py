"""Kept + dropped = read + made, counted again from the files, by nothing that the run itself used."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from errors import InputError

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

    return ((row["source"], row["row"], row.get("sample", 0)) for row in open_source(DataSource(str(path))))


def _dropped(output: Path, stage: str) -> Iterator[Place]:
    import pyarrow.parquet as pq

    path = output / "dropped" / f"{stage}.parquet"
    if not path.exists():
        raise InputError(f"{path} is missing; curate again")
    for batch in pq.ParquetFile(path).iter_batches(columns=["source", "row", "sample"]):
        for row in batch.to_pylist():
            yield row["source"], row["row"], row["sample"]


def _read_counts(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise InputError(f"{path} cannot be read; give the --output-dir of a scripts.curate that has ended") from None
