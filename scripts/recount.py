"""Counts again what scripts.curate left: kept + dropped = read (+ made), from the files alone."""

import dataclasses
from pathlib import Path

from cli import command
from data.sources import DataSource

DESCRIPTION = """Recount a curated folder: whether every row of the data is kept, or dropped by one stage.

  python -m scripts.recount --data chats.jsonl more.parquet --output-dir DIR

Ends with status 1 and a line where a row is lost or is there twice, or where counts.json is not what the files hold."""


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[DataSource, ...]
    """The sources that were curated."""
    output_dir: str
    """What scripts.curate left."""


def main(config: Config) -> None:
    from curation.recount import recount
    from data.sources import open_in_order

    sizes = {entry.source: len(source) for entry, source in zip(config.data, open_in_order(config.data))}
    print(recount(Path(config.output_dir), sizes))


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
