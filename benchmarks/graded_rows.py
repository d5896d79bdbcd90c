"""How many rows whose right value is known a reward grades so: tables of hard cases, and data sets' own solutions.

A row has a completion, the columns that the reward reads, and `right`, the value that it should get (1 where the file
has no such column). With --shift, each row's completion is graded by the tests or the answer of the row so much
further, and should get 0.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from cli import command
from cli.checks import check_not_negative
from data.sources import DataSource
from errors import InputError, shown

DESCRIPTION = """Grade rows whose right value is known, and print those that get another.

  python -m benchmarks.graded_rows --data cases.jsonl --columns answer reference --rewards math
  python -m benchmarks.graded_rows --data programs.jsonl --rewards "unit_tests(isolation=auto)"
  python -m benchmarks.graded_rows --data mbpp.jsonl --columns completion code --rewards unit_tests --shift 1"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    data: tuple[DataSource, ...]
    """The rows of these sources are graded."""
    rewards: str
    """By this one reward, as scripts.grpo takes it."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Columns are renamed, in pairs: our name, then theirs."""
    shift: int = 0
    """Rows are graded by another row's columns, so much further; all should get 0."""
    last: int = 0
    """Only so many rows at the end; 0: all."""
    show: int = 20
    """So many of the rows that get another value are printed."""


def main(config: Config) -> None:
    from data.sources import open_source

    check_not_negative(config, "shift", "last", "show")
    sources = [open_source(dataclasses.replace(each, columns=each.columns | config.columns)) for each in config.data]
    rows = [dict(source[index]) for source in sources for index in range(len(source))][-config.last :]
    check_rows(rows)
    print_results(config, rows, grade(config, rows))


def check_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Raises InputError for a row without a completion, or whose right value is no number."""
    for number, row in enumerate(rows):
        if "completion" not in row:
            raise InputError(f"row {number} has no column completion, only {shown(sorted(row))}; rename one by "
                             f"--columns")
        if not isinstance(row.get("right", 1), (int, float)):
            raise InputError(f"row {number}: right is {shown(row['right'])}; give a number")


def grade(config: Config, rows: Sequence[dict[str, Any]]) -> list[float | None]:
    """The reward's value of each row; None where it has none."""
    from rewards.registry import load_rewards
    from rewards.scoring import compute_rewards

    reward, *more = load_rewards(config.rewards)
    if more:
        raise InputError(f"--rewards {config.rewards}: names several; give one, whose value is the right one")
    others = [rows[(at + config.shift) % len(rows)] for at in range(len(rows))]
    names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "completion", "right"))
    columns = {name: [row.get(name) for row in others] for name in names}
    prompts, completions = [row.get("prompt") for row in others], [row["completion"] for row in rows]
    return compute_rewards([reward], prompts, completions, columns, float("inf")).values[reward.name]


def print_results(config: Config, rows: Sequence[dict[str, Any]], values: Sequence[float | None]) -> None:
    wanted = [0.0 if config.shift else float(row.get("right", 1)) for row in rows]
    wrong = [at for at, (value, right) in enumerate(zip(values, wanted)) if value != right]
    table = Table("row", "got", "right", "completion")
    for at in wrong[: config.show]:
        text = " ".join(str(rows[at]["completion"]).split())
        table.add_row(str(at), "none" if values[at] is None else f"{values[at]:g}", f"{wanted[at]:g}", text[-60:])
    if table.row_count:
        Console().print(table)
    print(f"{config.rewards}: {len(rows) - len(wrong)} of {len(rows)} rows as they should be, "
          f"{values.count(None)} without a value")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
