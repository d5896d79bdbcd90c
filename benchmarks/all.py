"""Every comparison with a peer that a CPU can make, in one command: speed in steady state, memory, a table.

Each comparison is a benchmark of its own in this folder, which says what both sides do; here they are called one after
the other, and what they measured is put together as docs/measured.md has it.
"""

import dataclasses
import datetime
import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from benchmarks import (
    dpo_vs_trl,
    generate_vs_transformers,
    grpo_vs_trl,
    pretrain_vs_transformers,
    score_vs_transformers,
    sft_vs_trl,
    turns,
)
from cli import command
from cli.checks import check_positive

DESCRIPTION = """Temper against TRL and transformers on this machine's CPUs, by turns, as one table.

  python -m benchmarks.all --trl-python path/to/environment/bin/python
  python -m benchmarks.all --trl-python PYTHON --only sft dpo --rounds 1"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    trl_python: str
    """the Python of an environment with torch, transformers, trl, peft and datasets"""
    only: tuple[Literal["sft", "sft-full", "dpo", "grpo", "sampling-bfloat16", "sampling-float32", "score",
                        "pretrain"], ...] = ()
    """these comparisons; by default all"""
    rounds: int = 2
    """turns of each side of each comparison"""
    steps: int = 6
    """optimiser steps of a turn; the first two are not counted"""


class Line(NamedTuple):
    """One comparison: ours, theirs."""

    what: str
    unit: str
    speeds: tuple[float, float]
    peaks: tuple[float, float]
    """GiB"""
    others: float
    """the largest share of the processors' time that other processes took"""


def main(config: Config) -> None:
    check_positive(config, "rounds", "steps")
    peers = turns.peer_versions(config.trl_python, "torch", "transformers", "trl")
    lines: list[Line] = []
    try:
        for name in config.only or COMPARISONS:
            lines += COMPARISONS[name](config)
    finally:  # what was measured is told though the next comparison fails
        print_table(lines)
        print(f"\n{environment(peers)}\n`{as_command(config)}`")


def environment(peers: str) -> str:
    """What the table is of."""
    ours = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax"))
    return f"{turns.processor()}; {ours}; peers: {peers}; {datetime.date.today()}"


def as_command(config: Config) -> str:
    """Which makes the table again."""
    only = f" --only {' '.join(config.only)}" if config.only else ""
    return f"python -m benchmarks.all --trl-python PYTHON{only} --rounds {config.rounds} --steps {config.steps}"


def trained(module: Any, check: Callable[[Any, Any], None] = turns.check_same_work,
            **flags: Any) -> Callable[[Config], Iterator[Line]]:
    """A comparison of train steps, which `check` ends where the two sides did not do the same work; `flags` are of its
    own."""
    def compare(config: Config) -> Iterator[Line]:
        work, done = module.compare(module.Config(
            trl_python=config.trl_python, rounds=config.rounds, steps=config.steps, **flags))
        check(work, done)
        sides = tuple(done.values())
        yield Line(work.title, f"{work.unit}/s", tuple(work.per_step / turns.median_step(each) for each in sides),
                   tuple(max(turn.peak_gib for turn in each) for each in sides),
                   max(turn.others for each in sides for turn in each))

    return compare


def sampled(dtype: str) -> Callable[[Config], Iterator[Line]]:
    """A comparison of sampling, a line a batch size."""
    def compare(config: Config) -> Iterator[Line]:
        own = generate_vs_transformers.Config(peer_python=config.trl_python, rounds=config.rounds, dtype=dtype)
        for size, done in zip(own.batch_sizes, generate_vs_transformers.compare(own), strict=True):
            yield worked(f"sampling, batch {size}, {dtype}", done)

    return compare


def scored(config: Config) -> Iterator[Line]:
    """The comparison of scoring, which ends where the two sides' log-probabilities differ."""
    own = score_vs_transformers.Config(peer_python=config.trl_python, rounds=config.rounds)
    done = score_vs_transformers.compare(own)
    score_vs_transformers.check_same_scores(own, done)
    yield worked(score_vs_transformers.title(own), done)


def worked(what: str, done: dict[str, list[dict[str, Any]]]) -> Line:
    """What workers say (turns.run_workers), as a line."""
    sides = tuple(done.values())
    return Line(what, "tokens/s", tuple(map(turns.token_speed, sides)),
                tuple(max(turn["spent"].peak_gib for turn in each) for each in sides),
                max(turn["spent"].others for each in sides for turn in each))


COMPARISONS = {"sft": trained(sft_vs_trl), "sft-full": trained(sft_vs_trl, rank=0), "dpo": trained(dpo_vs_trl),
               "grpo": trained(grpo_vs_trl, lambda work, done: grpo_vs_trl.check_lengths(done)),
               "sampling-bfloat16": sampled("bfloat16"), "sampling-float32": sampled("float32"),
               "score": scored, "pretrain": trained(pretrain_vs_transformers)}


def print_table(lines: list[Line]) -> None:
    """In Markdown, so that it can be kept as it is."""
    print("\n| what | Temper | peer | ratio | peak memory, GiB | peer's | others on the machine |")
    print("|---|---|---|---|---|---|---|")
    for line in lines:
        ours, theirs = line.speeds
        speeds = f"{turns.in_digits(ours)} {line.unit} | {turns.in_digits(theirs)} | {ours / theirs:.2f}"
        print(f"| {line.what} | {speeds} | {line.peaks[0]:.2f} | {line.peaks[1]:.2f} | {line.others:.0%} |")
    if any(line.others > turns.OTHERS for line in lines):
        print(f"\nThe machine was not quiet (above {turns.OTHERS:.0%}): do not quote those lines.")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
