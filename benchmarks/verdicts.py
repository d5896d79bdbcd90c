"""What a verdict costs: milliseconds for each completion of mathematics, of reasoning-gym and of code.

Processes are started, and libraries imported, before the clock runs, as they are after the first step of a run.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cli import command
from cli.checks import check_positive

DESCRIPTION = """Grade completions of each kind, and print what one costs.

  python -m benchmarks.verdicts
  python -m benchmarks.verdicts --before path/to/an/older/checkout"""
SQUARE = "```python\ndef square(x):\n    return x * x\n```"
HERE = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    rows: int = 200
    """Mathematics and reasoning-gym grade this many completions; code a fifth of it."""
    rounds: int = 3
    """Each kind is graded this many times, and the fastest counts."""
    before: str | None = None
    """An older checkout is measured by turns, too."""


def main(config: Config) -> None:
    check_positive(config, "rows", "rounds")
    if "TEMPER_VERDICTS" in os.environ:  # the child of another checkout
        print("\t".join(f"{each:.2f}" for each in measure(config).values()), flush=True)
        return
    columns = {"now": HERE} | ({"before": Path(config.before)} if config.before else {})
    results = {name: _child(config, folder) for name, folder in columns.items()}
    table = Table("ms for a verdict", *columns, title=f"{os.cpu_count()} cores")
    for row, kind in enumerate(KINDS):
        table.add_row(kind, *(results[name][row] for name in columns))
    Console().print(table)


def measure(config: Config) -> dict[str, float]:
    """Milliseconds of each kind."""
    return {kind: min(_time(*make(config.rows)) for _ in range(config.rounds)) for kind, make in KINDS.items()}


def _child(config: Config, folder: Path) -> list[str]:
    """Measured in a process that imports a checkout's own code and this file."""
    program = (f"import sys, runpy; sys.path[:0] = [{str(folder)!r}]; "
               f"sys.argv = ['verdicts', '--rows', '{config.rows}', '--rounds', '{config.rounds}']; "
               f"runpy.run_path({str(Path(__file__).resolve())!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-P", "-c", program], env=os.environ | {"TEMPER_VERDICTS": "1"}, cwd=folder,
                          stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()


def _time(reward: Callable[..., Any], completions: list[str], columns: dict[str, list[Any]]) -> float:
    reward(["?"], completions[:1], **{name: column[:1] for name, column in columns.items()})
    start = time.perf_counter()
    values = reward(["?"] * len(completions), completions, **columns)
    seconds = time.perf_counter() - start
    if values != [1.0, 0.0] * (len(values) // 2):
        raise RuntimeError(f"right and wrong answers by turns were graded {values[:8]}")
    return 1000 * seconds / len(completions)


def _mathematics(rows: int) -> tuple[Any, list[str], dict[str, list[Any]]]:
    from rewards.mathematics import make_math

    numbers = range(2, 2 + rows // 2)
    texts = [text for n in numbers for text in (rf"So it is \boxed{{\frac{{{n}}}{{{2 * n + 1}}}}}", rf"\boxed{{{n}x}}")]
    return make_math(), texts, {"answer": [rf"\frac{{{2 * n}}}{{{4 * n + 2}}}" for n in numbers for _ in range(2)]}


def _gym(rows: int) -> tuple[Any, list[str], dict[str, list[Any]]]:
    from data.sources import DataSource, open_source
    from rewards.gym import make_gym

    source = open_source(DataSource(f"gym:chain_sum(size={rows // 2}, seed=3)"))
    records = [source[row] for row in range(rows // 2)]
    texts = [text for record in records for text in (f"<answer>{record['answer']}</answer>", "<answer>no</answer>")]
    return make_gym("chain_sum"), texts, {
        name: [record[name] for record in records for _ in range(2)] for name in records[0]}


def _code(rows: int) -> tuple[Any, list[str], dict[str, list[Any]]]:
    from rewards.unit_tests import make_unit_tests

    count = max(2, rows // 10 * 2)
    texts = [SQUARE, SQUARE.replace("*", "+")] * (count // 2)
    return make_unit_tests(), texts, {"test_list": [["assert square(3) == 9", "assert square(-2) == 4"]] * count}


KINDS = {"math": _mathematics, "gym:chain_sum": _gym, "unit_tests": _code}


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
