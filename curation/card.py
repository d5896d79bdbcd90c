"""The data card: what the data is made of, what each stage removed, and by what recipe; card.md."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from curation.ledger import Counts
from curation.recipe import Recipe
from curation.stages import Row
from files import write_text


def write_card(output: Path, recipe: Recipe, counts: Sequence[Counts], rows: Sequence[Row]) -> None:
    """Raises InputError where it cannot be written."""
    parts = ["# Data card", f"{len(rows)} rows are kept.", "## Sources", _sources(counts, rows), "## Stages",
             _stages(recipe, counts), "## Recipe", f"```yaml\n{_recipe(recipe)}```"]
    write_text(output / "card.md", "\n\n".join(parts) + "\n")


def _sources(counts: Sequence[Counts], rows: Sequence[Row]) -> str:
    kept, places = Counter(), {}
    for row in rows:
        kept[row.source] += 1
        places.setdefault(row.source, set()).add(row.index)
    lines = [f"| {_cell(source)} | {count} | {kept[source]} | {len(places.get(source, ())) / count:.1%} |"
             for source, count in counts[0].read.items()]
    return "\n".join(["| source | rows read | rows kept | of its rows |", "|---|---|---|---|", *lines])


def _stages(recipe: Recipe, counts: Sequence[Counts]) -> str:
    lines = [f"| {step.label} | {_cell(source)} | {each.read[source]} | {each.made[source]} | {each.dropped[source]} | "
             f"{each.kept[source]} | {each.removal().get(source, 0):.1%} | {step.max_removal:g} |"
             for step, each in zip(recipe.steps, counts) for source in each.read]
    remarks = [f"{step.label}: {', '.join(each.remarks())}."
            for step, each in zip(recipe.steps, counts) if each.summary]
    table = "\n".join(["| stage | source | read | made | dropped | kept | rows removed | at most |",
                       "|---|---|---|---|---|---|---|---|", *lines])
    return "\n\n".join([table, *remarks])


def _cell(text: str) -> str:
    """A source's name, which may be a glob or a task with anything in it, in a table."""
    return " ".join(text.split()).replace("|", r"\|")


def _recipe(recipe: Recipe) -> str:
    bounds = {step.name: step.max_removal for step in recipe.steps}
    return yaml.safe_dump({"max_removal": bounds, "stages": recipe.as_written()}, sort_keys=False)
