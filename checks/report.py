"""What is shown and kept of the verdicts: a table with a line each, JSON, the exit status."""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from checks.verdicts import BAD, Verdict
from errors import InputError

COLOURS = {"ok": "green", "wrong": "bold red", "slow": "red", "failed": "bold red", "out of memory": "yellow",
           "not run": "dim"}


def exit_status(verdicts: Sequence[Verdict]) -> int:
    """1 where a check is wrong, slow or failed, or none could run; memory that does not suffice is no fault."""
    return int(any(each.status in BAD for each in verdicts) or not any(each.status == "ok" for each in verdicts))


def table(machine: Mapping[str, Any], verdicts: Sequence[Verdict], foretold: Mapping[str, str]) -> Table:
    """A line for each verdict, with what was foretold of its check; parts are set apart."""
    made = Table("check", "verdict", "found", "foretold", "s", title=title(machine), title_justify="left")
    part = None
    for verdict in verdicts:
        if verdict.part != part and part is not None:
            made.add_section()
        part = verdict.part
        made.add_row(f"{verdict.part}: {verdict.name}", f"[{COLOURS[verdict.status]}]{verdict.status}[/]",
                     verdict.note.replace("[", "\\["), foretold.get(verdict.name, ""), f"{verdict.seconds:.1f}")
    return made


def title(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    return f"{machine.get('count', '?')} x {machine.get('kind', 'unknown device')}; {versions}"


def grouped(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those of one part that did not run for one reason as one verdict, in the place of the first."""
    names = collections.defaultdict(list)
    for each in verdicts:
        if each.status == "not run":
            names[each.part, each.note].append(each.name)
    kept, seen = [], set()
    for each in verdicts:
        key = each.part, each.note
        if each.status != "not run":
            kept.append(each)
        elif key not in seen:
            seen.add(key)
            kept.append(Verdict(each.part, "; ".join(names[key]), each.status, each.note))
    return kept


def summary(verdicts: Sequence[Verdict]) -> str:
    """"56 ok, 1 wrong, 12 not run"."""
    counts = collections.Counter(each.status for each in verdicts)
    return ", ".join(f"{counts[status]} {status}" for status in COLOURS if counts[status]) or "nothing ran"


def as_json(machine: Mapping[str, Any], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {"machine": dict(machine), "passed": exit_status(verdicts) == 0,
            "verdicts": [vars(each) for each in verdicts]}


def read_foretold(given: Sequence[str]) -> dict[str, str]:
    """{check: what scripts.plan foretold of it} of CHECK=FILE, the file being what its --json wrote: the seconds of all
    programs of a step, the memory of the largest. Raises InputError for a file that is none."""
    foretold = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not equals:
            raise InputError(f"--foretold {each!r}: give CHECK=FILE, such as 'sft qwen3-0.6b=plan.json'")
        try:
            programs = json.loads(Path(path).read_text())
            seconds = [program["seconds"] * program.get("times", 1) for program in programs if program["seconds"]]
            memory = max(program["bytes_needed"] for program in programs)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"--foretold {each!r}: {path} is no JSON of scripts.plan ({error!r}); give what its "
                             f"--json wrote") from None
        foretold[name.strip()] = f"{f'{sum(seconds):.3f} s a step, ' if seconds else ''}{memory / 2**30:.2f} GiB"
    return foretold
