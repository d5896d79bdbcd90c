"""DPO of SmolLM2-135M with LoRA on the CPU: Temper against TRL's DPOTrainer, by turns, on the same pairs.

Both train on the same batch at every step: random token ids, all prompts of one length, all answers of another. Both
score every batch under the reference, which is the model without its adapter.
"""

import dataclasses
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import turns
from cli import command
from cli.checks import check_positive

DESCRIPTION = """DPO with LoRA on the CPU, Temper against TRL, by turns.

  python -m benchmarks.dpo_vs_trl --trl-python path/to/environment/bin/python --rounds 3 --steps 8"""

BETA = 0.1
TOLERANCES = {"float32": (1e-4, 0.1, 0.1), "bfloat16": (1e-4,)}
"""of the first losses, by --dtype. The first is log 2 on both sides. The others follow updates through LoRA's A, which
each side draws for itself, a few per cent apart in float32. bfloat16 rounds much of such small updates away, on each
side otherwise (0.306 and TRL's 0.424 where float32 has 0.159 and 0.155): there the work is compared in float32 first.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(turns.TuningFlags):
    batch_size: int = 4
    """pairs of a step"""
    prompt_length: int = 64
    """tokens of a prompt, which are no targets"""
    answer_length: int = 128
    """tokens of an answer, chosen or rejected"""


def main(config: Config) -> None:
    work, done = compare(config)
    turns.print_results(work, done)
    turns.check_same_work(work, done)


def compare(config: Config) -> tuple[turns.Work, turns.Turns]:
    """What is measured, and both sides' turns."""
    lengths = f"{config.prompt_length} + {config.answer_length} tokens"
    title = f"DPO with LoRA, {config.model}, {config.batch_size} pairs, {lengths}, {config.dtype}"
    work = turns.Work(title, "pairs", config.batch_size, TOLERANCES[config.dtype])
    turns.check(config, work)
    check_positive(config, "prompt_length", "answer_length")
    if config.dtype == "bfloat16":
        check_in_float32(config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = make_pairs(config, turns.prepare(config, folder))
        turns.write_rows(folder, [as_row(*pair) for pair in pairs])
        done = turns.take_turns(
            config, work,
            Temper=lambda number: turns.temper_turn(config, folder, number, "scripts.dpo", model=config.model,
                                                      loss="sigmoid", beta=BETA),
            TRL=lambda number: turns.trl_turn(config, folder, number, "trl_dpo_worker.py", pairs=pairs, beta=BETA))
    return work, done


def check_in_float32(config: Config) -> None:
    """Exits if the two sides, in float32, do not do the same work in the first steps."""
    print("the same work? the first steps in float32 ...", flush=True)
    steps = len(TOLERANCES["float32"])
    turns.check_same_work(*compare(dataclasses.replace(config, dtype="float32", rounds=1, steps=steps)))


def make_pairs(config: Config, vocab_size: int) -> list[tuple[list[int], ...]]:
    """One batch of (prompt, chosen, rejected), random token ids."""
    rng = random.Random(config.seed)
    lengths = config.prompt_length, config.answer_length, config.answer_length
    return [tuple([rng.randrange(vocab_size) for _ in range(length)] for length in lengths)
            for _ in range(config.batch_size)]


def as_row(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, Any]:
    """A pair as a row that scripts.dpo takes as it is."""
    answers = {"chosen": chosen, "rejected": rejected}
    return {f"{side}_tokens": prompt + answer for side, answer in answers.items()} | {
        f"{side}_loss_mask": [0] * len(prompt) + [1] * len(answer) for side, answer in answers.items()}


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
