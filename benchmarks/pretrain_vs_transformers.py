"""Pre-training of a small model from random weights on the CPU: Temper against transformers' Trainer, by turns, on the
same rows and from the same weights.

Both train all weights on the same batch at every step: random token ids, packed rows, every token a target.
"""

import dataclasses
import random
import tempfile
from pathlib import Path

from benchmarks import turns
from cli import command
from errors import InputError
from models.settings import Architecture

DESCRIPTION = """Pre-training on the CPU, Temper against transformers' Trainer, by turns.

  python -m benchmarks.pretrain_vs_transformers --trl-python path/to/environment/bin/python --rounds 3 --steps 8"""

TOLERANCES = {"float32": (1e-5, 1e-4, 1e-4), "bfloat16": (1e-3, 1e-3, 1e-3)}
"""of the first losses, by --dtype: same weights, rows and updates, so they differ by rounding only. The first is near
log(vocabulary) whatever is trained; the others fall as the updates make them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(turns.Flags):
    length: int = 256
    """tokens of a packed row"""
    vocab_size: int = 16384
    """tokens of the vocabulary"""
    architecture: Architecture = Architecture(embed_dim=512, num_layers=8, num_heads=8, tie_embeddings=True)


def main(config: Config) -> None:
    work, done = compare(config)
    turns.print_results(work, done)
    turns.check_same_work(work, done)


def compare(config: Config) -> tuple[turns.Work, turns.Turns]:
    """What is measured, and both sides' turns."""
    if config.length < 2:
        raise InputError(f"--length must be 2 or more, not {config.length}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        millions = write_model(config, folder / "model") / 1e6
        title = f"pre-training, {millions:.0f}M from random weights, {config.batch_size} x {config.length} tokens, " \
                f"{config.dtype}"
        work = turns.Work(title, "tokens", config.batch_size * config.length, TOLERANCES[config.dtype])
        turns.check(config, work)
        turns.try_imports(config, folder)
        rows = make_rows(config)
        turns.write_rows(folder, [{"tokens": row} for row in rows])
        done = turns.take_turns(config, work, Temper=lambda number: temper_turn(config, folder, number),
                                transformers=lambda number: turns.trl_turn(
                                    config, folder, number, "transformers_pretrain_worker.py", rows=rows))
    return work, done


def write_model(config: Config, folder: Path) -> int:
    """Random weights as a Hugging Face folder, which both sides begin with, and how many they are."""
    import jax

    from models.architecture import make_config, num_params, random_params
    from models.safetensors_weights import write_hf_folder
    from sharding.mesh import make_layout
    from sharding.settings import MeshConfig

    model_config = make_config(config.architecture, config.vocab_size)
    params = random_params(model_config, jax.random.key(config.seed), make_layout(MeshConfig()))
    folder.mkdir()
    write_hf_folder(folder, params, model_config, "float32")
    return num_params(model_config)


def make_rows(config: Config) -> list[list[int]]:
    """One batch of random token ids, each row a text that fills it."""
    rng = random.Random(config.seed)
    return [[rng.randrange(config.vocab_size) for _ in range(config.length)] for _ in range(config.batch_size)]


def temper_turn(config: Config, folder: Path, number: int) -> turns.Turn:
    return turns.temper_turn(config, folder, number, "scripts.pretrain",
                             **{"model": folder / "model", "max-length": config.length})


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
