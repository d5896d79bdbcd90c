"""Which layout of a group's completions is faster: rows that share their prompt, or plain rows, by turns.

The gradient of one micro-batch of a policy with LoRA, random weights; all prompts and completions are of full length,
so that neither layout has padding. `positions` is what the two hold, shared / plain.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from batch import RowLayout
from benchmarks.cpu_dtype import measure
from cli import command
from cli.checks import check_positive
from models.config import PRESETS
from models.lora import LoRAConfig
from models.scoring import score_by
from models.transformer import Transformer, init_variables
from objectives.grpo import configure
from training.progress import track
from training.state import TrainState
from training.step import accumulate

DESCRIPTION = """Time the gradient of completions that share their prompt against the same as plain rows.

  python -m benchmarks.prompt_sharing
  python -m benchmarks.prompt_sharing --shapes 64:64:8 512:64:2 --rounds 5"""


@dataclasses.dataclass(frozen=True)
class Config:
    shapes: tuple[str, ...] = ("16:256:2", "16:256:8", "64:64:2", "64:64:8", "256:256:2", "256:256:4", "512:64:4")
    """tokens of the prompt, of each completion, and completions: PROMPT:COMPLETION:COUNT"""
    preset: str = "smollm2-135m"
    """architecture (models.config.PRESETS)"""
    dtype: str = "bfloat16"
    rounds: int = 3
    """turns of each layout, after one that warms up"""
    rank: int = 16
    """of LoRA, on all linear layers"""


def main(config: Config) -> None:
    check_positive(config, "rounds", "rank")
    table = Table("prompt", "completion", "completions", "plain, s", "shared, s", "shared / plain", "positions",
                  title=f"{config.preset}, {config.dtype}")
    preset = dataclasses.replace(PRESETS[config.preset], dtype=config.dtype, param_dtype=config.dtype)
    model = Transformer(preset, LoRAConfig(rank=config.rank, alpha=2.0 * config.rank))
    state = jax.jit(lambda: random_state(model))()
    for shape in track(config.shapes, "shapes"):
        prompt, completion, count = map(int, shape.split(":"))
        calls = {name: gradient(model, state, random_columns(preset.vocab_size, prompt, completion, count), row_layout)
                 for name, row_layout in (("plain", RowLayout()), ("shared", RowLayout(prompt, count)))}
        plain, shared = (statistics.median(seconds) for seconds in measure(calls, config.rounds).values())
        table.add_row(*shape.split(":"), f"{plain:.2f}", f"{shared:.2f}", f"{shared / plain:.2f}",
                      f"{(prompt + count * completion) / (count * (prompt + completion)):.2f}")
    console = Console()
    console.print(table)
    console.print(f"jax {jax.__version__} on {jax.default_backend()}", highlight=False)


def random_state(model: Transformer) -> TrainState:
    """Of a state without an optimiser."""
    variables = nn.meta.unbox(init_variables(model, jax.random.key(0)))
    return TrainState(jnp.zeros((), jnp.int32), variables["params"], variables["lora"], (), jax.random.key(0))


def random_columns(vocab_size: int, prompt: int, completion: int, count: int) -> dict[str, jax.Array]:
    """[1, B, T] columns of one group."""
    random, shape = np.random.default_rng(0), (1, count, prompt + completion)
    tokens = random.integers(0, vocab_size, shape, dtype=np.int32)
    tokens[..., :prompt] = tokens[:, :1, :prompt]
    positions = np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)
    mask = (positions >= prompt).astype(np.float32)
    columns = {"tokens": tokens, "positions": positions, "segment_ids": np.ones(shape, np.int32), "loss_mask": mask,
               "sampler_logps": -10.0 * mask, "advantages": random.normal(size=shape[:2]).astype(np.float32)}
    return jax.tree.map(jnp.asarray, columns)


def gradient(model: Transformer, state: TrainState, columns: dict[str, jax.Array],
             row_layout: RowLayout) -> Callable[[], Any]:
    """The compiled sums of the micro-batch, to be called again and again."""
    sums = jax.jit(lambda state, columns: accumulate(model, configure(), state, columns, score_by(row_layout)))
    return lambda: sums(state, columns)


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
