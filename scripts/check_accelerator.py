"""Does this machine compute what it should, and how fast? A fresh GPU or TPU machine in under ten minutes."""

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

from checks.all_checks import PARTS, make_checks
from checks.report import as_json, exit_status, grouped, read_foretold, summary, table
from checks.supervisor import Options, supervise
from checks.verdicts import Verdict
from cli.checks import check_file
from errors import InputError
from files import write_text

DESCRIPTION = """Check a fresh GPU or TPU machine: right first, then fast. Nothing is downloaded, no data is needed.

  python -m scripts.check_accelerator --json checked.json

Attention kernels, paged decoding, the scorer, train steps and sampling are compared to float32 references; SFT, DPO,
decoding, the memory and the links are timed. One verdict a line: ok; wrong (further from the reference than rounding
explains); slow (less than a third of what the maker states); failed (an exception, a crash, or no end); out of memory;
not run, with the reason. The exit status is 1 where a line is wrong, slow or failed. On a CPU sizes are small and the
TPU's kernels are interpreted. docs/accelerators.md says how to read it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    json: Path | None = None
    """All verdicts with their figures, and what the machine is, are written to this file."""
    quick: bool = False
    """Sizes are small, as on a CPU: whether everything runs at all, not how fast."""
    parts: tuple[str, ...] = ()
    """Only these parts of the table are run; by default all."""
    foretold: tuple[str, ...] = ()
    """What scripts.plan foretold is shown beside what was found: CHECK=FILE, the file being what its --json wrote."""
    max_minutes: float = 10.0
    """No check begins after this many minutes; those that are left are told as not run."""


def main(config: Config) -> None:
    from rich.console import Console

    unknown = [part for part in config.parts if part not in PARTS]
    if unknown:
        raise InputError(f"--parts {unknown[0]!r} is none of the table's; there are {', '.join(PARTS)}")
    if not config.max_minutes > 0:
        raise InputError(f"--max-minutes must be above 0, not {config.max_minutes}")
    if config.json is not None:
        check_file(str(config.json), "--json")
    foretold = read_foretold(config.foretold)
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # what is told of compiling is of compiling

    machine, verdicts = {}, []
    for told in supervise(make_checks, Options(config.quick, config.parts, time.time() + 60 * config.max_minutes)):
        if isinstance(told, Verdict):
            verdicts.append(told)
            print(f"{told.status:<13} {told.part}: {told.name}", file=sys.stderr, flush=True)
        else:
            machine = told

    Console(width=None if sys.stdout.isatty() else 160).print(table(machine, grouped(verdicts), foretold))
    print(summary(verdicts))
    if config.json is not None:
        write_text(config.json, json.dumps(as_json(machine, verdicts), indent=1) + "\n")
    sys.exit(exit_status(verdicts))


def parse_plainly(arguments: list[str]) -> Config:
    """The flags where tyro is not installed, as on a machine that has little more than JAX."""
    parser = argparse.ArgumentParser("check_accelerator", None, DESCRIPTION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--max-minutes", type=float, default=Config.max_minutes)
    for several in ("--parts", "--foretold"):
        parser.add_argument(several, nargs="*", default=())
    given = vars(parser.parse_args(arguments))
    return Config(**given | {name: tuple(given[name]) for name in ("parts", "foretold")})


if __name__ == "__main__":
    if importlib.util.find_spec("tyro"):
        from cli import command

        command.run(main, Config, DESCRIPTION)
    else:
        try:
            main(parse_plainly(sys.argv[1:]))
        except InputError as error:
            sys.exit(f"error: {error}")
