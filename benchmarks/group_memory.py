"""Memory of a policy gradient's micro-batches as groups grow: whole groups, and parts of them within a budget.

Compiled, never run: what the compiler takes beside the model's weights for the loss and gradient of the largest
micro-batch that rollouts.packing makes. It exits with status 1 where the parts' memory grows with the group. The last
lines are of groups whose every episode has `--longest` tokens, more than the budget.
"""

import dataclasses
import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from cli import command
from cli.checks import check_positive
from models.config import PRESETS
from models.lora import LoRAConfig
from models.scoring import score_by
from models.transformer import Transformer, init_variables
from objectives.grpo import configure
from rollouts.packing import Shape, plan_shapes
from training.state import TrainState
from training.step import accumulate

DESCRIPTION = """Compile the gradient of a group's micro-batches and print the memory that each takes.

  python -m benchmarks.group_memory"""

GROUP_SIZES = (2, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class Config:
    preset: str = "smollm2-135m"
    """architecture (models.config.PRESETS)"""
    dtype: str = "bfloat16"
    prompt_length: int = 256
    max_new_tokens: int = 512
    """tokens of a completion"""
    microbatch_tokens: int = 2304
    """positions of a micro-batch at the most, one episode at least"""
    longest: int = 8000
    """tokens of an episode of the last lines"""
    rank: int = 16
    """of LoRA, on all linear layers; 0: all weights are trained"""


def main(config: Config) -> None:
    check_positive(config, "prompt_length", "max_new_tokens", "microbatch_tokens", "longest")
    table = Table("completions of a group", "whole group, MiB", "in parts of", "a part, MiB",
                  title=f"{config.preset}, {config.dtype}, {config.prompt_length} + {config.max_new_tokens} tokens")
    parts = []
    for group_size in GROUP_SIZES:
        whole, part = (largest(config, group_size, config.max_new_tokens, budget)
                       for budget in (2**30, config.microbatch_tokens))
        parts.append(gradient_memory(config, part))
        table.add_row(str(group_size), f"{gradient_memory(config, whole):,.0f}", f"{part.slots} x {part.rows}",
                      f"{parts[-1]:,.0f}")
    console = Console()
    console.print(table)
    long = largest(config, GROUP_SIZES[-1], config.longest - config.prompt_length, config.microbatch_tokens)
    for remat in ("none", "full"):
        console.print(f"{GROUP_SIZES[-1]} episodes of {config.longest:,} tokens, by {long.slots} x {long.rows}, remat "
                      f"{remat}: {gradient_memory(config, long, remat):,.0f} MiB", highlight=False)
    console.print(f"jax {jax.__version__}, compiled for {jax.default_backend()}", highlight=False)
    if parts[-1] > 1.1 * parts[0]:
        sys.exit("the memory of a part grows with its group")


def largest(config: Config, group_size: int, max_new_tokens: int, budget: int) -> Shape:
    """Of the micro-batches of one group."""
    return plan_shapes([config.prompt_length], max_new_tokens, group_size, 1, budget)[-1]


@functools.cache
def gradient_memory(config: Config, shape: Shape, remat: str = "none") -> float:
    """MiB beside weights and batch, from shapes alone."""
    preset = dataclasses.replace(PRESETS[config.preset], dtype=config.dtype, param_dtype=config.dtype, remat=remat)
    model = Transformer(preset, LoRAConfig(rank=config.rank, alpha=2.0 * config.rank) if config.rank else None)
    rows, length = shape.slots * shape.rows, shape.prompt_length + shape.length
    columns = {name: jax.ShapeDtypeStruct((1, rows, length), dtype) for name, dtype in (
        ("tokens", "int32"), ("positions", "int32"), ("segment_ids", "int32"), ("loss_mask", "float32"),
        ("old_logps", "float32"), ("sampler_logps", "float32"))}
    columns["advantages"] = jax.ShapeDtypeStruct((1, rows), "float32")

    def gradient(state: TrainState, columns: dict[str, jax.Array]) -> tuple:
        return accumulate(model, configure(), state, columns, score_by(shape.row_layout))

    compiled = jax.jit(gradient).lower(state_shapes(model), columns).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def state_shapes(model: Transformer) -> TrainState:
    """Of a state without an optimiser."""
    def make() -> TrainState:
        variables = nn.meta.unbox(init_variables(model, jax.random.key(0)))
        return TrainState(jnp.zeros((), jnp.int32), variables["params"], variables.get("lora"), (), jax.random.key(0))

    return jax.eval_shape(make)


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
