"""Log-probabilities of completions under SmolLM2-135M on the CPU: Temper against transformers, by turns, on the same
rows.

Rows are of random tokens, prompts and completions of many lengths; both sides batch those of like length.
"""

import dataclasses
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import turns
from cli.checks import check_positive, check_seed
from cli.command import run
from errors import InputError

DESCRIPTION = """Scoring on the CPU, Temper against transformers, by turns.

  python -m benchmarks.score_vs_transformers --peer-python path/to/environment/bin/python"""

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.2}
"""nats, by --dtype: mean absolute difference of the sides' log-probabilities above which they cannot be doing the same
work. transformers' logits are bfloat16, whose neighbours near 16 lie 1/16 to 1/8 apart; a token scored in the wrong
place is off by nats."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    peer_python: str
    """the Python of an environment with torch and transformers"""
    rows: int = 64
    """prompts with a completion each"""
    batch_size: int = 8
    """rows scored at a time"""
    prompt_tokens: tuple[int, int] = (16, 192)
    """least and most of a prompt, drawn evenly between them"""
    completion_tokens: tuple[int, int] = (16, 192)
    """of a completion, likewise"""
    rounds: int = 1
    """turns of each side"""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """of weights and matmuls, on both sides"""
    model: str = "smollm2-135m-instruct"
    """any model that scripts.export can write as a Hugging Face folder"""
    seed: int = 0
    """of the rows"""


def main(config: Config) -> None:
    done = compare(config)
    print_results(config, done)
    check_same_scores(config, done)


def compare(config: Config) -> dict[str, list[dict[str, Any]]]:
    """What each side's worker says, by side and round, beside `spent`."""
    check_positive(config, "rows", "batch_size", "rounds")
    check_seed(config.seed)
    for name in ("prompt_tokens", "completion_tokens"):
        least, most = getattr(config, name)
        if not 1 <= least <= most:
            raise InputError(f"--{name.replace('_', '-')} {least} {most}: give the least, 1 or more, and the most")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = make_settings(config, turns.export(config.model, folder, "transformers"), folder)
        return turns.run_workers(config.peer_python, settings, folder, config.rounds, "temper_score_worker",
                                 "transformers_score_worker", "score")


def make_settings(config: Config, vocab_size: int, folder: Path) -> dict[str, Any]:
    rng = random.Random(config.seed)

    def texts(lengths: tuple[int, int]) -> list[list[int]]:
        return [[rng.randrange(vocab_size) for _ in range(rng.randint(*lengths))] for _ in range(config.rows)]

    return {"model": str(folder / "model"), "dtype": config.dtype, "batch_size": config.batch_size,
            "threads": turns.threads(), "prompts": texts(config.prompt_tokens),
            "completions": texts(config.completion_tokens)}


def title(config: Config) -> str:
    prompts, completions = (f"{least} to {most}" for least, most in (config.prompt_tokens, config.completion_tokens))
    return f"score, {config.model}, {config.dtype}, batch {config.batch_size}, {prompts} + {completions} tokens"


def print_results(config: Config, done: dict[str, list[dict[str, Any]]]) -> None:
    table = Table("", *done, title=title(config))
    table.add_row("tokens/s", *(f"{turns.token_speed(each):,.1f}" for each in done.values()))
    table.add_row("peak RSS, GiB", *(f"{max(turn['spent'].peak_gib for turn in each):.2f}" for each in done.values()))
    table.add_row("mean log-probability", *(f"{flat(each[0]).mean():.4f}" for each in done.values()))
    console = Console()
    console.print(table)
    ours, theirs = map(turns.token_speed, done.values())
    for side, each in done.items():
        others = max(turn["spent"].others for turn in each)
        if others > turns.OTHERS:
            console.print(f"the machine was not quiet: others took {others:.0%} of its processors beside {side}; do "
                          f"not quote this run", soft_wrap=True)
    console.print(f"{' / '.join(done)}: {ours / theirs:.2f}; log-probabilities differ by {difference(done):.4f} nats "
                  f"on average", soft_wrap=True)


def flat(turn: dict[str, Any]) -> np.ndarray:
    """Log-probabilities of all completions' tokens, end to end."""
    return np.concatenate(turn["logps"])


def difference(done: dict[str, list[dict[str, Any]]]) -> float:
    """Of two log-probabilities of a token, absolute, on average; infinite where the sides have not as many."""
    ours, theirs = (flat(each[0]) for each in done.values())
    return float(np.abs(ours - theirs).mean()) if len(ours) == len(theirs) else np.inf


def check_same_scores(config: Config, done: dict[str, list[dict[str, Any]]]) -> None:
    """Exits if the sides' log-probabilities differ by more than rounding makes of them."""
    if not difference(done) <= TOLERANCES[config.dtype]:
        sys.exit(f"log-probabilities differ by {difference(done):.4f} nats on average: the two sides did not do the "
                 f"same work")


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
