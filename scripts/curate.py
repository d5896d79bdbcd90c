"""Data curation: rows sampled, chosen, filtered and mixed by a recipe of stages, with nothing lost unseen."""

import dataclasses
from pathlib import Path
from typing import Literal

from cli import command
from cli.checks import check_positive
from data.sources import DataSource
from files import only_one

DESCRIPTION = """Choose data by a recipe of stages.

  python -m scripts.curate --data chats.jsonl more.parquet --stages recipe.yaml --output-dir DIR --dry-run
  python -m scripts.curate --data chats.jsonl more.parquet --stages recipe.yaml --output-dir DIR

  max_removal: {default: 0.5, near_duplicates: 0.9}
  stages:
    - length: {min_tokens: 3, max_tokens: 512}
    - exact_duplicates: {}
    - sample: {model: smollm2-135m-instruct, num_samples: 8, rewards: math}
    - best_of: {keep: 1}

DIR/kept.jsonl has the rows that are left, with where each is from; DIR/dropped/STAGE.parquet every row that a stage
dropped, and why; DIR/card.md says what was done. docs/curation.md has the stages and their keys. A stage that removes
more of a source than max_removal (0.5 where it says nothing else) ends the run.

Ended, by whatever, it goes on where it was when the same command is given again, and asks no teacher twice."""


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[DataSource, ...]
    """The rows of these sources are read, one source after the other."""
    stages: str
    """This YAML file is the recipe."""
    output_dir: str
    """What is kept, what is dropped and the answers of teachers are written here."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """The rows that are left are written like this."""
    processes: int = 1
    """Stages that decide on each row alone are shared by this many processes; what is kept is the same."""
    runner: Literal["local", "ray"] = "local"
    """local: by --processes. ray: by all processors of the Ray cluster that RAY_ADDRESS names, which sees the same
    files; what is kept is the same."""
    dry_run: bool = False
    """Nothing is applied: profile.json and report.html say what the stages would do."""
    sample_rows: int = 256
    """A dry run tries stages with a model, and those after them, on so many rows."""


def main(config: Config) -> None:
    from curation.card import write_card
    from curation.folder import end, finished, run_key
    from curation.output import write_kept
    from curation.page import write_page
    from curation.profile import Done, check_profile, dry_run, write_profile
    from curation.recipe import read_recipe
    from curation.rows import DataRows, fingerprint
    from curation.run import run_stages
    from curation.runners import make_spread

    check_positive(config, "processes", "sample_rows")
    spread = make_spread(config.runner, config.processes)
    recipe, output = read_recipe(Path(config.stages)), Path(config.output_dir)
    rows = DataRows(config.data, recipe.drops_unreadable)
    key = fingerprint(rows)
    kept = output / f"kept.{config.format}"
    with only_one(output):
        if config.dry_run:
            done = dry_run(rows, recipe, output, key, config.sample_rows, spread, tell)
            write_profile(output, rows, recipe, key, done, applied=False)
            write_page(output)
            tell(f"nothing is applied; what the stages would do: {output}/report.html")
            return
        check_profile(output, key)
        if not finished(output, kept, run_key(key, recipe)):
            left, counts = run_stages(rows, recipe, output, key, spread, tell)
            write_kept(kept, left)
            write_card(output, recipe, counts, left)
            write_profile(output, rows, recipe, key, Done(left, counts, [0] * len(counts)), applied=True)
            write_page(output)
            end(output, kept, key, recipe, counts)
        tell(f"kept: {kept}; dropped: {output}/dropped; what was done: {output}/card.md, {output}/report.html")


def tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
