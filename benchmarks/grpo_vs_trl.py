"""GRPO of SmolLM2-135M with LoRA on the CPU: Temper against TRL's GRPOTrainer, by turns, on the same prompts.

A step answers the same chat prompts in groups, rewards the answers and makes one update. What is sampled differs, so
lengths do, too, a little: both sides' mean completion is shown, and the run fails where they differ by a fifth.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import turns
from cli import command
from cli.checks import check_positive
from training.metrics import read_metrics

DESCRIPTION = """GRPO with LoRA on the CPU, Temper against TRL (generating with transformers), by turns.

  python -m benchmarks.grpo_vs_trl --trl-python path/to/environment/bin/python --rounds 2 --steps 4"""

QUESTIONS = ("What is the capital of France?", "Why is the sky blue?", "Name three animals that can fly.",
             "What do bees make?", "How do I boil an egg?", "What is 7 plus 5?", "Who wrote Hamlet?",
             "Give me a word that rhymes with light.")
LENGTHS_DIFFER = 0.2
"""share by which the sides' mean completions may differ"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(turns.TuningFlags):
    batch_size: int = 4
    """prompts of a step"""
    group_size: int = 8
    """completions of each"""
    max_new_tokens: int = 64
    """longest completion"""


def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """The share of letters that are vowels: cheap, and different for every answer."""
    texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


def main(config: Config) -> None:
    work, done = compare(config)
    turns.print_results(work, done)
    check_lengths(done)


def compare(config: Config) -> tuple[turns.Work, turns.Turns]:
    """What is measured, and both sides' turns."""
    rows = config.batch_size * config.group_size
    title = f"GRPO with LoRA, {config.model}, {config.batch_size} prompts x {config.group_size}, up to " \
            f"{config.max_new_tokens} new tokens, {config.dtype}"
    work = turns.Work(title, "completions", rows, ())
    turns.check(config, work)
    check_positive(config, "group_size", "max_new_tokens")
    prompts = [[{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}] for number in range(config.batch_size)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        turns.prepare(config, folder)
        turns.write_rows(folder, [{"prompt": prompt} for prompt in prompts])
        done = turns.take_turns(config, work, Temper=lambda number: temper_turn(config, folder, number),
                                TRL=lambda number: trl_turn(config, folder, number, prompts))
    return work, done


def temper_turn(config: Config, folder: Path, number: int) -> turns.Turn:
    more = {"model": config.model, "rewards": "benchmarks.grpo_vs_trl:reward", "group-size": config.group_size,
            "max-new-tokens": config.max_new_tokens, "rollouts.log-completions-every": 0,
            "rollouts.num-slots": config.batch_size * config.group_size}
    turn = turns.temper_turn(config, folder, number, "scripts.grpo", **more)
    lengths = [line["completions/mean_length"] for line in read_metrics(folder / f"temper-{number}")]
    return turn._replace(facts=turn.facts | {"mean completion": sum(lengths) / len(lengths)})


def trl_turn(config: Config, folder: Path, number: int, prompts: list[Any]) -> turns.Turn:
    return turns.trl_turn(config, folder, number, "trl_grpo_worker.py", prompts=prompts,
                          group_size=config.group_size, max_new_tokens=config.max_new_tokens,
                          batch_size=config.batch_size * config.group_size)


def check_lengths(done: turns.Turns) -> None:
    """Exits where one side sampled much longer completions: then it did more work."""
    ours, theirs = (sum(turn.facts["mean completion"] for turn in each) / len(each) for each in done.values())
    if abs(ours - theirs) > LENGTHS_DIFFER * theirs:
        sys.exit(f"completions have {ours:.1f} and {theirs:.1f} tokens on average: the two sides did not do the same "
                 f"work; take more steps")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
