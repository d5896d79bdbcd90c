"""Temper against TRL or transformers by turns: each turn is a process of its own, at rest while the other side works.

Shared by the scripts that train on the CPU, on the same batch at every step, so that the losses can be compared as well
as the speed, and by those that run a worker on either side.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from cli.checks import check_not_negative, check_positive, check_seed
from cli.command import MALLOC, huge_pages_for_asking
from errors import InputError
from training.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
QUIET = 1.25
"""a side's fastest step over its slowest, above which something else was running, too"""
OTHERS = 0.05
"""share of the processors' time that others may take, above which the machine was not quiet"""
WARM_UP = 2
"""first steps of a turn that are not counted: compilation, and memory that is taken for the first time"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What each benchmark that trains is told."""

    rank: ClassVar[int] = 0
    """all weights are trained"""

    trl_python: str
    """the Python of an environment with torch, transformers, trl, peft and datasets"""
    rounds: int = 3
    """turns of each side"""
    steps: int = 6
    """optimiser steps of a turn; the first two are warm-up (and compilation) and are not counted"""
    batch_size: int = 8
    """rows (or pairs of them) of a step"""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """of matmuls and frozen weights, on both sides; LoRA's own weights are float32 on both"""
    trl_autocast: bool = True
    """bfloat16 only: TRL runs under torch.autocast (its default) and not just with bfloat16 weights"""
    learning_rate: float = 2e-4
    """constant"""
    seed: int = 0
    """of the rows"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningFlags(Flags):
    """And what those are told that train an existing model."""

    model: str = "smollm2-135m-instruct"
    """any model that scripts.export can write as a Hugging Face folder"""
    rank: int = 16
    """of LoRA, on all linear layers; alpha is twice that; 0 trains all weights, which are float32 then"""


class Turn(NamedTuple):
    """What one process of one side did."""

    seconds: list[float]
    """of each step, the first included"""
    losses: list[float]
    peak_gib: float
    """peak resident memory"""
    facts: dict[str, Any]
    others: float
    """share of the processors' time that went to other processes meanwhile"""


class Work(NamedTuple):
    """What is measured, and what must come out alike."""

    title: str
    unit: str
    """what speed counts"""
    per_step: int
    """units of a step"""
    tolerances: tuple[float, ...]
    """of the first steps' losses, one each: relative difference above which the sides cannot be doing the same work"""


Turns = dict[str, list[Turn]]


def check(flags: Flags, work: Work) -> None:
    """Raises InputError for numbers that make no sense."""
    check_positive(flags, "rounds", "batch_size", "learning_rate")
    check_not_negative(flags, "rank")
    check_seed(flags.seed)
    least = max(WARM_UP + 1, len(work.tolerances))
    if flags.steps < least:
        raise InputError(f"--steps must be {least} or more (the first {WARM_UP} are warm-up; the losses of the first "
                         f"{len(work.tolerances)} are compared), not {flags.steps}")


def prepare(flags: TuningFlags, folder: Path) -> int:
    """Tries TRL's environment, writes the model for TRL as a Hugging Face folder, and gives its vocabulary's size."""
    try_imports(flags, folder)
    return export(flags.model, folder, "TRL")


def try_imports(flags: Flags, folder: Path) -> None:
    """Exits where TRL's environment lacks a package."""
    run_child([flags.trl_python, "-c", "import datasets, peft, torch, transformers, trl"], folder / "imports.log")


def peer_versions(peer_python: str, *packages: str) -> str:
    """As the peer's environment has them."""
    code = ("import sys; from importlib.metadata import version\n"
            "print(*(f'{name} {version(name)}' for name in sys.argv[1:]), sep=', ')")
    with tempfile.TemporaryDirectory() as name:
        run_child([peer_python, "-c", code, *packages], Path(name) / "versions.log")
        return (Path(name) / "versions.log").read_text().strip()


def export(model: str, folder: Path, peer: str) -> int:
    """Writes the model for the peer as a Hugging Face folder, `model` in this one, and gives its vocabulary's size."""
    print(f"exporting {model} for {peer} ...", flush=True)
    run_child([sys.executable, "-m", "scripts.export", "--model", model, "--output", str(folder / "model")],
              folder / "export.log")
    return json.loads((folder / "model" / "config.json").read_text())["vocab_size"]


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """rows.jsonl, for Temper."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def take_turns(flags: Flags, work: Work, **sides: Callable[[int], Turn]) -> Turns:
    """Every side once a round; a side takes the number of the round."""
    turns: Turns = {name: [] for name in sides}
    for number in range(1, flags.rounds + 1):
        for name, take_turn in sides.items():
            turns[name].append(take_turn(number))
            print(f"round {number} of {flags.rounds}: {name} {summary(work, turns[name][-1])}", flush=True)
    return turns


def temper_turn(flags: Flags, folder: Path, number: int, script: str, **more: Any) -> Turn:
    """A script of Temper on rows.jsonl, in a run directory of its own; its metrics.jsonl tells the rest."""
    run = folder / f"temper-{number}"
    lora = {"lora.rank": flags.rank, "lora.alpha": 2.0 * flags.rank} if flags.rank else {}
    given = {"data": folder / "rows.jsonl", "output-dir": run, "max-steps": flags.steps,
             "batch-size": flags.batch_size, "learning-rate": flags.learning_rate, "dtype": flags.dtype,
             "save-every": 0, "optimizer.schedule": "constant", "optimizer.weight-decay": 0.0,
             "optimizer.max-grad-norm": 1.0} | lora | more
    given["compilation-cache"] = "off"  # the first step is compiled in each round, as in the peers'
    command = [sys.executable, "-m", script, *(f"--{name}={value}" for name, value in given.items())]
    spent = run_child(command, folder / f"temper-{number}.log", JAX_PLATFORMS="cpu")
    steps = read_metrics(run)
    return Turn([step["step_seconds"] for step in steps], [step["loss"] for step in steps], spent.peak_gib,
                temper_facts(flags), spent.others)


def temper_facts(flags: Flags) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return {"versions": versions, "frozen weights": flags.dtype if flags.rank else "none", "trained weights": "float32",
            "matmuls": flags.dtype, "gradient checkpointing": "none", "threads": threads()}


def trl_turn(flags: Flags, folder: Path, number: int, worker: str, **more: Any) -> Turn:
    """A worker, a file of this folder, under TRL's Python; its result file tells the rest."""
    settings = {"model": str(folder / "model"), "steps": flags.steps, "batch_size": flags.batch_size,
                "weights": flags.dtype if flags.rank else "float32",
                "autocast": flags.dtype == "bfloat16" and flags.trl_autocast,
                "rank": flags.rank, "alpha": 2 * flags.rank, "learning_rate": flags.learning_rate,
                "threads": threads(), "output_dir": str(folder / f"trl-{number}")} | more
    settings_file, result_file = folder / "settings.json", folder / f"trl-{number}.json"
    settings_file.write_text(json.dumps(settings))
    command = [flags.trl_python, str(Path(__file__).with_name(worker)), str(settings_file), str(result_file)]
    spent = run_child(command, folder / f"trl-{number}.log", HF_HUB_OFFLINE="1")
    result = json.loads(result_file.read_text())
    return Turn(result["seconds"], result["losses"], spent.peak_gib, result["facts"], spent.others)


def threads() -> int:
    """Processors that this process may run on; XLA takes as many, and torch is told to."""
    return len(os.sched_getaffinity(0))


def run_workers(peer_python: str, settings: dict[str, Any], folder: Path, rounds: int, ours: str, theirs: str,
                title: str) -> dict[str, list[dict[str, Any]]]:
    """What each side's worker, a file of this folder, says of `settings`, by side and round, beside `spent`."""
    sides = {"Temper": ([sys.executable, "-m", f"benchmarks.{ours}"],
                        {"JAX_PLATFORMS": "cpu"} | malloc_settings()),
             "transformers": ([peer_python, str(Path(__file__).with_name(f"{theirs}.py"))], {"HF_HUB_OFFLINE": "1"})}
    (folder / "settings.json").write_text(json.dumps(settings))
    done: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(1, rounds + 1):
        for side, (command, environment) in sides.items():
            files = [str(folder / "settings.json"), str(folder / f"{side}-{number}.json")]
            spent = run_child([*command, *files], folder / f"{side}.log", **environment)
            done[side].append(turn := json.loads(Path(files[1]).read_text()) | {"spent": spent})
            print(f"{title}, round {number} of {rounds}: {side} {turn['tokens'] / turn['seconds']:,.1f} tokens/s",
                  flush=True)
    return done


def malloc_settings() -> dict[str, str]:
    """Those that Temper's scripts give themselves (cli.command.set_malloc), for a worker, which is none of them."""
    wanted = "GLIBC_TUNABLES" not in os.environ and huge_pages_for_asking()
    return {"GLIBC_TUNABLES": MALLOC} if wanted else {}


def token_speed(done: list[dict[str, Any]]) -> float:
    """Tokens a second, the median of a worker's turns."""
    return statistics.median(turn["tokens"] / turn["seconds"] for turn in done)


class Spent(NamedTuple):
    """What a process took while it ran."""

    peak_gib: float
    """peak resident memory"""
    others: float
    """share of the processors' time that went to other processes"""


def run_child(command: list[str], log: Path, **environment: str) -> Spent:
    """Runs a command to its end. Exits, with its last lines, if it fails."""
    start, busy = time.perf_counter(), busy_seconds()
    with log.open("w") as output:
        try:
            child = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=output, stderr=output)
        except OSError as error:
            raise InputError(f"{command[0]}: cannot be run ({error.strerror}); give a Python") from None
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        tail = "\n".join(log.read_text().splitlines()[-30:])
        sys.exit(f"{tail}\n\nfailed with status {child.returncode}: {' '.join(command)}")
    others = busy_seconds() - busy - usage.ru_utime - usage.ru_stime
    return Spent(usage.ru_maxrss / 2**20, max(0.0, others) / (os.cpu_count() * (time.perf_counter() - start)))


def busy_seconds() -> float:
    """Processor time that this machine has spent on anything; 0 where no /proc tells (not on Linux)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def processor() -> str:
    """Name and number of this machine's processors, and what they multiply bfloat16 with."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"model name\s*: (.+)", text)
    units = [unit for unit in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if re.search(rf"\b{unit}\b", text)]
    return f"{threads()} x {name[1] if name else platform.machine()}{f' ({units[0]})' if units else ''}"


def speeds(work: Work, *turns: Turn) -> list[float]:
    """Units per second of every step but each turn's WARM_UP."""
    return [work.per_step / seconds for turn in turns for seconds in turn.seconds[WARM_UP:]]


def ratio(ours: list[Turn], theirs: list[Turn]) -> float:
    """Of the median speeds; above 1 where the first is faster."""
    return median_step(theirs) / median_step(ours)


def median_step(turns: list[Turn]) -> float:
    """Seconds, of all steps but each turn's WARM_UP."""
    return statistics.median(seconds for turn in turns for seconds in turn.seconds[WARM_UP:])


def in_digits(speed: float) -> str:
    """Four digits or more."""
    return f"{speed:,.1f}" if speed >= 100 else f"{speed:.3f}"


def summary(work: Work, turn: Turn) -> str:
    return f"{in_digits(statistics.median(speeds(work, turn)))} {work.unit}/s, first loss {turn.losses[0]:.4f}"


def print_results(work: Work, turns: Turns) -> None:
    """The table, the ratio, and what each side used."""
    console = Console()
    table = Table("", *turns, title=work.title)
    columns = [figures(work, done) for done in turns.values()]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)
    by_round = ", ".join(f"{ratio([ours], [theirs]):.2f}" for ours, theirs in zip(*turns.values()))
    console.print(f"{' / '.join(turns)}: {ratio(*turns.values()):.2f} (by round: {by_round})")
    for side, done in turns.items():
        console.print(f"{side}: {describe(done[0].facts)}", highlight=False, soft_wrap=True)
        others = max(turn.others for turn in done)
        if others > OTHERS or max(speeds(work, *done)) > QUIET * min(speeds(work, *done)):
            console.print(f"the machine was not quiet: others took {others:.0%} of its processors beside {side}, whose "
                          f"speeds are above; do not quote this run", soft_wrap=True)


def figures(work: Work, turns: list[Turn]) -> dict[str, str]:
    """One side's column of the table."""
    each, losses = speeds(work, *turns), turns[0].losses
    compared = sorted({*range(len(work.tolerances)), len(losses) - 1})
    return {
        f"{work.unit}/s, median": in_digits(statistics.median(each)),
        f"{work.unit}/s, min to max": f"{in_digits(min(each))} to {in_digits(max(each))}",
        "seconds a step, median": f"{median_step(turns):.2f}",
        "first step, seconds": f"{statistics.median(turn.seconds[0] for turn in turns):.2f}",
        "peak RSS, GiB": f"{max(turn.peak_gib for turn in turns):.2f}",
    } | {f"loss, step {i + 1}": f"{losses[i]:.4f}" for i in compared}


def describe(facts: dict[str, Any]) -> str:
    versions = " ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return "; ".join([versions, *(f"{name}: {value}" for name, value in facts.items() if name != "versions")])


def check_same_work(work: Work, turns: Turns) -> None:
    """Exits if the first steps' losses, on the same rows and weights, differ by more than the work tolerates."""
    losses = (done[0].losses for done in turns.values())
    for step, (tolerance, ours, theirs) in enumerate(zip(work.tolerances, *losses), start=1):
        if not abs(ours - theirs) <= tolerance * abs(theirs):
            sys.exit(f"the losses of step {step} differ ({ours:.4f} and {theirs:.4f}): the two sides did not do the "
                     f"same work")
