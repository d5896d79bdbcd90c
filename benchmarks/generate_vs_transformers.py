"""Sampling from SmolLM2-135M on the CPU: Temper's sampler against transformers' generate, by turns, in one run.

Both answer the same prompts of random tokens, each up to a length of its own; end tokens end nothing, so that both
sample the very same number of tokens. transformers decodes batches until the longest of each is done; Temper gives the
place of what is done to what waits.
"""

import dataclasses
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks import turns
from cli.checks import check_positive
from cli.command import run

DESCRIPTION = """Sampling on the CPU, Temper against transformers, by turns.

  python -m benchmarks.generate_vs_transformers --peer-python path/to/environment/bin/python"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    peer_python: str
    """the Python of an environment with torch and transformers"""
    batch_sizes: tuple[int, ...] = (16, 64)
    """completions decoded at a time"""
    batches: int = 3
    """batches of completions that are asked for at once"""
    prompt_length: int = 64
    """tokens"""
    new_tokens: tuple[int, int] = (64, 256)
    """least and most of a completion, drawn evenly between them"""
    rounds: int = 1
    """turns of each side"""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """of weights and matmuls, on both sides"""
    model: str = "smollm2-135m-instruct"
    """any model that scripts.export can write as a Hugging Face folder"""
    seed: int = 0
    """of prompts and lengths"""


def main(config: Config) -> None:
    print_results(config, compare(config))


def compare(config: Config) -> list[dict[str, list[dict[str, Any]]]]:
    """What each side's worker says, by batch size, side and round, beside `spent`."""
    check_positive(config, "batches", "prompt_length", "rounds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocab_size = turns.export(config.model, folder, "transformers")
        return [measure(config, folder, size, vocab_size) for size in config.batch_sizes]


def measure(config: Config, folder: Path, size: int, vocab_size: int) -> dict[str, list[dict[str, Any]]]:
    """What each side's worker says, by round."""
    rng, count = random.Random(config.seed), size * config.batches
    settings = {"model": str(folder / "model"), "dtype": config.dtype, "batch_size": size, "threads": turns.threads(),
                "prompts": [[rng.randrange(vocab_size) for _ in range(config.prompt_length)] for _ in range(count)],
                "limits": [rng.randint(*config.new_tokens) for _ in range(count)]}
    return turns.run_workers(config.peer_python, settings, folder, config.rounds, "temper_generate_worker",
                             "transformers_generate_worker", f"batch {size}")


def print_results(config: Config, measured: list[dict[str, list[dict[str, Any]]]]) -> None:
    table = Table("batch", "Temper, tokens/s", "transformers, tokens/s", "ratio", "tokens",
                  title=f"sampling from {config.model}, {config.dtype}, prompt {config.prompt_length}, "
                        f"{config.new_tokens[0]} to {config.new_tokens[1]} new tokens")
    for size, done in zip(config.batch_sizes, measured, strict=True):
        tokens = {turn["tokens"] for each in done.values() for turn in each}
        if len(tokens) != 1:
            sys.exit(f"batch {size}: the sides sampled {sorted(tokens)} tokens, not the same work")
        ours, theirs = map(turns.token_speed, done.values())
        table.add_row(str(size), f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}", str(tokens.pop()))
    Console().print(table)


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
