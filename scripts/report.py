"""A run, or several, to look at: one page in a file of its own, or tables on the terminal."""

import dataclasses
from pathlib import Path

import tyro

from cli import command

DESCRIPTION = """Show what one or several training runs left: flags, curves, evaluations in pairs, samples.

  python -m scripts.report runs/mine                      # writes runs/mine/report.html
  python -m scripts.report runs/mine runs/other --output both.html
  python -m scripts.report runs/mine --text

Only files are read, so a run that goes on can be looked at. The page needs no server and loads nothing. It shows curves
over steps, tokens or hours, the first and the last evaluation with intervals, and what the model said, to be searched.
"""


@dataclasses.dataclass(frozen=True)
class Config:
    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run directories (--output-dir of a training script); of several, the first is what others are compared with."""
    output: str | None = None
    """The page is written to this file; by default to report.html in the run's directory, or, of several, in this one.
    """
    text: bool = False
    """Tables are printed, and no page is written."""


def main(config: Config) -> None:
    from cli.checks import check_file
    from errors import InputError
    from reports.page import write_page
    from reports.run import read_runs
    from reports.text import print_runs

    if not config.runs:
        raise InputError("give one or several run directories, the --output-dir of training scripts")
    if config.text and config.output:
        raise InputError("--text prints, and writes no --output; give one of them")
    runs = read_runs(config.runs)
    if config.text:
        print_runs(runs)
        return
    output = Path(config.output or (runs[0].path / "report.html" if len(runs) == 1 else "report.html"))
    check_file(str(output))
    write_page(runs, output)
    print(f"report: {output}")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
