"""A run directory as a report reads it: flags, starts, metrics, the first and the last evaluation."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from errors import InputError, shown
from evals.comparison import Compared, compare
from evals.results import read_evaluation
from evals.samples import Sample

Evaluation = Mapping[str, Sequence[Sample]]
"""samples by task"""


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run left."""

    path: Path
    name: str
    """the directory's, with as much of its path as tells it from the others"""
    flags: Mapping[str, Any]
    """`lora.rank` -> 16"""
    launches: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    evaluations: Mapping[str, Evaluation]
    """by name (`step-000100`), in order: the first and the last, or one, or none"""

    @property
    def steps(self) -> int:
        """That were made."""
        return max((line["step"] for line in self.metrics), default=0)


def read_runs(references: Sequence[str]) -> list[Run]:
    """Raises InputError for what is no run directory, and for files in one that cannot be read."""
    paths = [Path(reference).expanduser().resolve() for reference in references]
    return [read_run(path, name) for path, name in zip(paths, names(paths), strict=True)]


def names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart."""
    longest = max(len(path.parts) for path in paths)
    for count in range(1, longest + 1):
        found = ["/".join(path.parts[-count:]) for path in paths]
        if len({*found}) == len(found):
            return found
    raise InputError(f"{paths[0]} is given twice; give each run once")


def read_run(path: Path, name: str) -> Run:
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: no run directory, for its config.yaml is not readable "
                         f"({str(error).splitlines()[0]}); give the --output-dir of a training run") from None
    if not isinstance(config, dict):
        raise InputError(f"{path / 'config.yaml'}: a mapping of flags was expected; is {path} a run directory?")
    launches = read_lines(path / "launches.jsonl", "time", "command")
    metrics = read_lines(path / "metrics.jsonl", "step")
    return Run(path, name, flat(config), launches, metrics, _evaluations(path / "evals"))


def read_lines(path: Path, *needed: str) -> list[dict[str, Any]]:
    """The JSON lines of a file, which all have the keys `needed`; none without a file. A last line that lacks its end,
    as of a run that goes on, is passed over."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable ({error}); mend or remove it") from None
    return [_parsed(f"{path}, line {number}", line, needed) for number, line in enumerate(lines, 1)]


def _parsed(place: str, line: str, needed: Sequence[str]) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: not readable as JSON ({error}); mend or remove it") from None
    if not isinstance(parsed, dict) or {*needed} - parsed.keys():
        raise InputError(f"{place}: an object with {', '.join(needed)} was expected; mend or remove it")
    return parsed


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _evaluations(folder: Path) -> dict[str, Evaluation]:
    """The first and the last that is whole."""
    found = sorted((file.parent.name for file in folder.glob("*/results.json")), key=_place)
    return {name: read_evaluation(folder / name) for name in dict.fromkeys(found[:1] + found[-1:])}


def _place(name: str) -> tuple[float, str]:
    """`before`, steps by their number, all others."""
    step = re.fullmatch(r"step-(\d+)", name)
    return (int(step[1]) if step else -1 if name == "before" else math.inf), name


def differing_flags(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The flags that are not the same in all runs -> each run's value."""
    every = dict.fromkeys(name for run in runs for name in run.flags if name not in ("output_dir", "sha256", "history"))
    values = {name: [run.flags.get(name) for run in runs] for name in every}
    return {name: list(map(shown, each)) for name, each in values.items() if any(value != each[0] for value in each)}


class Comparison(NamedTuple):
    """Two evaluations of the same questions, in pairs."""

    title: str
    names: tuple[str, str]
    compared: list[Compared]


def comparisons(runs: Sequence[Run]) -> tuple[list[Comparison], list[str]]:
    """(in pairs: of each run the last evaluation with the first; of each later run the last one with the first run's,
    where both asked the same; what could not be compared, a line each)."""
    found, notes = [], []
    for run in runs:
        if len(run.evaluations) > 1:
            (first, before), (last, after) = run.evaluations.items()
            name = f"{run.name}: " if len(runs) > 1 else ""
            _compare(f"{name}{first} and {last}", before, after, (first, last), found,
                     notes)
    judged = [run for run in runs if run.evaluations]
    for run in judged[1:]:
        before, after = ([*each.evaluations.values()][-1] for each in (judged[0], run))
        both = judged[0].name, run.name
        _compare(" and ".join(both) + ", after their last steps", before, after, both, found, notes)
    return found, notes


def _compare(title: str, before: Evaluation, after: Evaluation, both: tuple[str, str], found: list[Comparison],
             notes: list[str]) -> None:
    try:
        found.append(Comparison(title, both, compare(before, after, both)))
    except InputError as error:
        notes.append(str(error))


def versions(launch: Mapping[str, Any]) -> str:
    """What a run was made with, one line."""
    return ", ".join(f"{name} {shown(value)}" for name, value in launch.items()
                     if name not in ("time", "command", "about"))


def about(launch: Mapping[str, Any]) -> list[str]:
    """The command, and what the run said of itself at its start, a line each."""
    return [launch["command"], *(f"{name}: {value}" for name, value in (launch.get("about") or {}).items())]
