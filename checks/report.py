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


def table(machine: Mapping[str, Any], verdicts: Sequence[Verdict], foretold: Mapping[str, Any]) -> Table:
    """Checks that cannot run here for one reason are one line."""
    made = Table("check", "verdict", "found", "foretold", "s", title=title(machine), title_justify="left")
    part = None
    for verdict in verdicts:
        if verdict.part != part and part is not None:
            made.add_section()
        part = verdict.part
        made.add_row(f"{verdict.part}: {verdict.name}", f"[{COLOURS[verdict.status]}]{verdict.status}[/]",
                     verdict.note.replace("[", "\\["), _foretold(foretold, verdict), f"{verdict.seconds:.1f}")
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


def read_foretold(path: Path | None) -> dict[str, Any]:
    """{"sft qwen3-0.6b": {"step_seconds": ..., "memory_gib": ...}, ...}: by the names of checks, what scripts.plan
    foretells of them. Raises InputError for a file that is none."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"--foretold {path}: not readable as JSON ({error}); give a file of scripts.plan") from None
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise InputError(f"--foretold {path}: no JSON object of checks, each with its figures")
    return found


def _foretold(foretold: Mapping[str, Any], verdict: Verdict) -> str:
    figures = foretold.get(verdict.name, {})
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, int | float))
