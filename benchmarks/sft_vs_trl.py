"""Fine-tuning of SmolLM2-135M on the CPU, by LoRA or (--rank 0) of all weights: Temper against TRL's SFTTrainer, by
turns, on the same rows.

Both train on the same batch at every step: random token ids, all rows of one length, every token a target.
"""

import dataclasses
import random
import tempfile
from pathlib import Path

from benchmarks import turns
from cli import command
from errors import InputError

DESCRIPTION = """LoRA fine-tuning on the CPU, Temper against TRL, by turns.

  python -m benchmarks.sft_vs_trl --trl-python path/to/environment/bin/python --rounds 3 --steps 8"""

TOLERANCES = (0.01,)
"""of the first loss: the two round differently. Later ones depend on LoRA's A, which each side draws for itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(turns.TuningFlags):
    length: int = 284
    """tokens of a row"""


def main(config: Config) -> None:
    work, done = compare(config)
    turns.print_results(work, done)
    turns.check_same_work(work, done)


def compare(config: Config) -> tuple[turns.Work, turns.Turns]:
    """What is measured, and both sides' turns."""
    kind = "LoRA" if config.rank else "full"
    title = f"{kind} fine-tuning, {config.model}, {config.batch_size} x {config.length} tokens, {config.dtype}"
    work = turns.Work(title, "tokens", config.batch_size * config.length, TOLERANCES)
    turns.check(config, work)
    if config.length < 2:
        raise InputError(f"--length must be 2 or more, not {config.length}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(config, turns.prepare(config, folder))
        turns.write_rows(folder, [{"tokens": row} for row in rows])
        done = turns.take_turns(
            config, work,
            Temper=lambda number: turns.temper_turn(config, folder, number, "scripts.sft", model=config.model),
            TRL=lambda number: turns.trl_turn(config, folder, number, "trl_worker.py", rows=rows))
    return work, done


def make_rows(config: Config, vocab_size: int) -> list[list[int]]:
    """One batch of random token ids."""
    rng = random.Random(config.seed)
    return [[rng.randrange(vocab_size) for _ in range(config.length)] for _ in range(config.batch_size)]


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
