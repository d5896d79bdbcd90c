"""What a recipe leaves: the rows that are kept, as --data of every script reads them, and what is known of each.

Provenance stands in columns beside the row's own: source, row (in the source, from 0), sample and teacher where it was
sampled, reward and rewards where it was graded, and stage, the one that made the row ("data": it is as it was read). A
row's own column of such a name is called NAME_in_data, and one of that name, of data that was curated before,
NAME_in_data_in_data.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from curation.stages import Row
from errors import InputError
from files import whole_file

PROVENANCE = ("source", "row", "sample", "teacher", "reward", "rewards", "stage")
OWN = re.compile(f"({'|'.join(PROVENANCE)})(_in_data)*")
NOTED = ("teacher", "reward", "rewards")
"""of them, what stages note"""
AT_ONCE = 4096


def as_record(row: Row) -> dict[str, Any]:
    """The row as it is written."""
    own = {f"{name}_in_data" if OWN.fullmatch(name) else name: value for name, value in row.record.items()}
    sampled = {"sample": row.sample} if "teacher" in row.notes else {}
    noted = {name: row.notes[name] for name in NOTED if row.notes.get(name) is not None}
    return own | {"source": row.source, "row": row.index} | sampled | noted | {"stage": row.notes.get("stage", "data")}


def write_kept(path: Path, rows: Sequence[Row]) -> None:
    """JSON lines, or Parquet where the name says so; the file appears whole. Raises InputError where it cannot be
    written."""
    if path.suffix == ".parquet":
        _write_parquet(path, rows)
        return
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            print(json.dumps(as_record(row), ensure_ascii=False, default=str), file=file)


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """In two passes, as the columns of all rows must be known before the first one is written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pa.unify_schemas([table.schema for table in _tables(rows)], promote_options="permissive")
        with whole_file(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for table in _tables(rows, schema):
                writer.write_table(table)
    except (UnicodeEncodeError, OverflowError, pa.ArrowException) as error:
        raise InputError(f"{path}: the rows do not fit a Parquet table ({' '.join(str(error).split())[:150]}); give "
                         f"the same command with --format jsonl") from None


def _tables(rows: Iterable[Row], schema: Any = None) -> Iterator[Any]:
    import pyarrow as pa

    rows = iter(rows)
    while some := [as_record(row) for row in itertools.islice(rows, AT_ONCE)]:
        names = dict.fromkeys(name for record in some for name in record)
        yield pa.Table.from_pylist([dict.fromkeys(names) | record for record in some], schema)
