"""How often a reward model prefers the chosen answer of eval pairs, with a confidence interval."""

import dataclasses
import functools
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cli import command
from cli.checks import max_row_length
from data.sources import DataSource
from evals.statistics import wilson

DESCRIPTION = """Pair accuracy of a reward model on eval pairs, one line a source.

  python -m benchmarks.reward_accuracy --model runs/reward --data heldout.jsonl"""


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """run directory, folder or Hub id of a reward model"""
    data: tuple[DataSource, ...]
    """eval pairs, as for scripts.reward"""
    batch_size: int = 16
    """answers scored at a time"""
    max_length: int | None = None
    """leave out pairs with an answer over so many tokens; the model's context by default"""


def main(config: Config) -> None:
    from data.reading import Encoder, read_all
    from data.sources import open_source
    from models.heads import score_rewards
    from rewards.learned import open_reward_model
    from sharding.fastest_dtype import default_dtype
    from sharding.mesh import MeshConfig, make_layout
    from training.evaluation import score_rows
    from training.progress import track

    opened = open_reward_model(config.model)
    length = max_row_length(config.max_length, opened.config.max_length)
    encoder = Encoder(opened.tokenizer, opened.config.vocab_size, length, "drop", "skip", form="pair")
    layout = make_layout(MeshConfig())
    model, variables = opened.load(layout, dtype=default_dtype(), param_dtype=default_dtype())
    table = Table("pairs", "number", "left out", "accuracy", "95 % confidence interval", "ties", "mean margin")
    for each in config.data:
        rows, counts = read_all([open_source(each)], encoder)
        scores = score_rows(model, variables, rows, config.batch_size, layout, score_rewards,
                            functools.partial(track, what=each.source))
        rewards = np.asarray([score.rewards for score in scores])
        table.add_row(each.source, *figures(rewards[0::2] - rewards[1::2], sum(counts.values())))
    Console().print(table)


def figures(margins: np.ndarray, left_out: int) -> list[Any]:
    """A line of the table; a tie is half right."""
    ties = int(np.sum(margins == 0))
    right = float(np.sum(margins > 0)) + ties / 2
    low, high = wilson(right / len(margins), len(margins))
    return [str(len(margins)), str(left_out), f"{right / len(margins):.3f}", f"{low:.3f} to {high:.3f}", str(ties),
            f"{np.mean(margins):.3f}"]


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
