"""LoRA fine-tuning of SmolLM2-135M on the CPU: Temper against TRL's SFTTrainer, by turns, on the same rows.

Each turn is a process of its own, at rest while the other works. Both train on the same batch at every step (random
token ids, all rows of one length, every token a target), so that their losses can be compared as well as their speed.
"""

import dataclasses
import importlib.metadata
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from errors import InputError
from scripts import cli
from training.metrics import read_metrics

DESCRIPTION = """LoRA fine-tuning on the CPU, Temper against TRL, by turns.

  python -m benchmarks.sft_vs_trl --trl-python path/to/environment/bin/python --rounds 3 --steps 8"""

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).with_name("trl_worker.py")
LOSS_TOLERANCE = 0.01
"""relative difference of the first step's losses above which the two sides cannot be doing the same work"""
QUIET = 1.25
"""a side's fastest step over its slowest, above which something else was running, too"""


@dataclasses.dataclass(frozen=True)
class Config:
    trl_python: str
    """the Python of an environment with torch, transformers, trl, peft and datasets"""
    rounds: int = 3
    """turns of each side"""
    steps: int = 6
    """optimiser steps of a turn; the first is warm-up (and compilation) and is not counted"""
    batch_size: int = 8
    """rows of a step"""
    length: int = 284
    """tokens of a row"""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """of matmuls and frozen weights, on both sides; LoRA's own weights are float32 on both"""
    trl_autocast: bool = True
    """bfloat16 only: TRL runs under torch.autocast (its default) and not just with bfloat16 weights"""
    model: str = "smollm2-135m-instruct"
    """any model that scripts.export can write as a Hugging Face folder"""
    rank: int = 16
    """of LoRA, on all linear layers; alpha is twice that"""
    learning_rate: float = 2e-4
    """constant"""
    seed: int = 0
    """of the rows"""


class Turn(NamedTuple):
    """What one process of one side did."""

    seconds: list[float]
    """of each step, the first included"""
    losses: list[float]
    peak_gib: float
    """peak resident memory"""
    facts: dict[str, Any]


def main(config: Config) -> None:
    cli.check_positive(config, "rounds", "batch_size", "rank")
    if config.steps < 2 or config.length < 2:
        raise InputError("--steps must be 2 or more (the first is warm-up) and --length 2 or more")
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run_child([config.trl_python, "-c", "import datasets, peft, torch, transformers, trl"], work / "imports.log")
        console.print(f"exporting {config.model} for TRL ...")
        export_model(config, work)
        rows = write_rows(config, work)
        turns: dict[str, list[Turn]] = {"Temper": [], "TRL": []}
        for number in range(1, config.rounds + 1):
            for side, take_turn in (("Temper", temper_turn), ("TRL", trl_turn)):
                turns[side].append(take_turn(config, work, rows, number))
                console.print(f"round {number} of {config.rounds}: {side} {summary(config, turns[side][-1])}")
    show(console, config, turns)
    check_same_work(turns)


def export_model(config: Config, work: Path) -> None:
    """The same weights for TRL, as a Hugging Face folder."""
    run_child([sys.executable, "-m", "scripts.export", "--run", config.model, "--output", str(work / "model")],
              work / "export.log")


def write_rows(config: Config, work: Path) -> list[list[int]]:
    """One batch of random token ids, written to rows.jsonl for Temper."""
    vocab_size = json.loads((work / "model" / "config.json").read_text())["vocab_size"]
    rng = random.Random(config.seed)
    rows = [[rng.randrange(vocab_size) for _ in range(config.length)] for _ in range(config.batch_size)]
    (work / "rows.jsonl").write_text("".join(json.dumps({"tokens": row}) + "\n" for row in rows))
    return rows


def temper_turn(config: Config, work: Path, rows: list[list[int]], number: int) -> Turn:
    """scripts.sft in a run directory of its own; its metrics.jsonl tells the rest."""
    run = work / f"temper-{number}"
    flags = {"model": config.model, "data": work / "rows.jsonl", "output-dir": run, "max-steps": config.steps,
             "batch-size": config.batch_size, "learning-rate": config.learning_rate, "dtype": config.dtype,
             "remat": "none", "save-every": 0, "lora.rank": config.rank, "lora.alpha": 2.0 * config.rank,
             "lora.dropout": 0.0, "optimizer.schedule": "constant", "optimizer.weight-decay": 0.0,
             "optimizer.max-grad-norm": 1.0}
    command = [sys.executable, "-m", "scripts.sft", *(f"--{name}={value}" for name, value in flags.items())]
    peak = run_child(command, work / f"temper-{number}.log", JAX_PLATFORMS="cpu")
    steps = read_metrics(run)
    seconds = [len(rows) * config.length / step["tokens_per_second"] for step in steps]
    return Turn(seconds, [step["loss"] for step in steps], peak, temper_facts(config))


def temper_facts(config: Config) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return {"versions": versions, "frozen weights": config.dtype, "trained weights": "float32",
            "matmuls": config.dtype, "gradient checkpointing": "none", "threads": threads()}


def trl_turn(config: Config, work: Path, rows: list[list[int]], number: int) -> Turn:
    """trl_worker.py under TRL's Python; its result file tells the rest."""
    settings = {"model": str(work / "model"), "rows": rows, "steps": config.steps, "weights": config.dtype,
                "autocast": config.dtype == "bfloat16" and config.trl_autocast, "rank": config.rank,
                "alpha": 2 * config.rank, "learning_rate": config.learning_rate, "threads": threads(),
                "output_dir": str(work / f"trl-{number}")}
    settings_file, result_file = work / "settings.json", work / f"trl-{number}.json"
    settings_file.write_text(json.dumps(settings))
    peak = run_child([config.trl_python, str(WORKER), str(settings_file), str(result_file)],
                     work / f"trl-{number}.log", HF_HUB_OFFLINE="1")
    result = json.loads(result_file.read_text())
    return Turn(result["seconds"], result["losses"], peak, result["facts"])


def threads() -> int:
    """Processors that this process may run on; XLA takes as many, and torch is told to."""
    return len(os.sched_getaffinity(0))


def run_child(command: list[str], log: Path, **environment: str) -> float:
    """Runs a command to its end and gives its peak resident memory in GiB. Exits, with its last lines, if it fails."""
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
    return usage.ru_maxrss / 2**20


def speeds(config: Config, *turns: Turn) -> list[float]:
    """Tokens per second of every step but each turn's first."""
    return [config.batch_size * config.length / seconds for turn in turns for seconds in turn.seconds[1:]]


def summary(config: Config, turn: Turn) -> str:
    return f"{statistics.median(speeds(config, turn)):,.1f} tokens/s, first loss {turn.losses[0]:.4f}"


def show(console: Console, config: Config, turns: dict[str, list[Turn]]) -> None:
    """The table, the ratio, and what each side used."""
    table = Table("", *turns, title=f"LoRA fine-tuning, {config.model}, {config.batch_size} x {config.length} tokens")
    columns = [figures(config, done) for done in turns.values()]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)
    by_round = ", ".join(f"{ratio(config, [ours], [theirs]):.2f}" for ours, theirs in zip(*turns.values()))
    console.print(f"Temper / TRL: {ratio(config, *turns.values()):.2f} (by round: {by_round})")
    for side, done in turns.items():
        console.print(f"{side}: {describe(done[0].facts)}", highlight=False, soft_wrap=True)
        if max(speeds(config, *done)) > QUIET * min(speeds(config, *done)):
            console.print(f"{side}'s steps differ too much in speed: the machine was not quiet; do not quote this run",
                          soft_wrap=True)


def figures(config: Config, turns: list[Turn]) -> dict[str, str]:
    """One side's column of the table."""
    each = speeds(config, *turns)
    step = statistics.median(seconds for turn in turns for seconds in turn.seconds[1:])
    return {
        "tokens/s, median": f"{statistics.median(each):,.1f}",
        "tokens/s, min to max": f"{min(each):,.1f} to {max(each):,.1f}",
        "seconds a step, median": f"{step:.2f}",
        "first step, seconds": f"{statistics.median(turn.seconds[0] for turn in turns):.2f}",
        "peak RSS, GiB": f"{max(turn.peak_gib for turn in turns):.2f}",
        "loss, first step": f"{turns[0].losses[0]:.4f}",
        f"loss, step {config.steps}": f"{turns[0].losses[-1]:.4f}",
    }


def ratio(config: Config, ours: list[Turn], theirs: list[Turn]) -> float:
    """Of the median speeds; above 1 where the first is faster."""
    return statistics.median(speeds(config, *ours)) / statistics.median(speeds(config, *theirs))


def describe(facts: dict[str, Any]) -> str:
    versions = " ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return "; ".join([versions, *(f"{name}: {value}" for name, value in facts.items() if name != "versions")])


def check_same_work(turns: dict[str, list[Turn]]) -> None:
    """Exits if the losses of the first step, on the same rows and weights, differ by more than rounding makes them."""
    ours, theirs = turns["Temper"][0].losses[0], turns["TRL"][0].losses[0]
    if abs(ours - theirs) > LOSS_TOLERANCE * theirs:
        sys.exit(f"the first losses differ ({ours:.4f} and {theirs:.4f}): the two sides did not do the same work")


if __name__ == "__main__":
    cli.run(main, Config, DESCRIPTION)
