"""Memory of a policy gradient's micro-batches as groups grow: whole groups, and parts of them within a budget.

Compiled, never run: what the compiler takes beside the model's weights for one micro-batch's loss and gradient. It
exits with status 1 where the parts' memory grows with the group. The last line is one row of as many tokens as
`--longest`, which is what a group of any size then costs.
"""

import dataclasses
import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from batch import Layout
from cli import command
from cli.checks import check_positive
from models.config import PRESETS
from models.lora import LoRAConfig
from models.scoring import score_by
from models.transformer import Transformer, init_variables
from objectives.grpo import configure
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
    """positions of a micro-batch that holds a part of a group"""
    longest: int = 8000
    """tokens of the one row of the last line"""
    rank: int = 16
    """of LoRA, on all linear layers; 0: all weights are trained"""


def main(config: Config) -> None:
    check_positive(config, "prompt_length", "max_new_tokens", "microbatch_tokens", "longest")
    table = Table("completions of a group", "whole group, MiB", "in parts of", "a part, MiB",
                  title=f"{config.preset}, {config.dtype}, {config.prompt_length} + {config.max_new_tokens} tokens")
    room = (config.microbatch_tokens - config.prompt_length) // config.max_new_tokens
    parts = []
    for group_size in GROUP_SIZES:
        part = max(1, min(group_size, room))
        parts.append(shared_memory(config, part))
        table.add_row(str(group_size), f"{shared_memory(config, group_size):,.0f}", str(part), f"{parts[-1]:,.0f}")
    console = Console()
    console.print(table)
    for remat in ("none", "full"):
        console.print(f"one row of {config.longest:,} tokens, remat {remat}: {long_memory(config, remat):,.0f} MiB",
                      highlight=False)
    console.print(f"jax {jax.__version__}, compiled for {jax.default_backend()}", highlight=False)
    if max(parts) > 1.1 * parts[0]:  # of the smallest group, whose attention's scores may be kept
        sys.exit("the memory of a part grows with its group")


@functools.cache
def shared_memory(config: Config, part: int) -> float:
    """MiB for `part` completions that share their prompt."""
    layout = Layout(config.prompt_length, part) if part > 1 else Layout()
    return gradient_memory(config, part, config.prompt_length + config.max_new_tokens, layout, "none")


def long_memory(config: Config, remat: str) -> float:
    """MiB for one row of the longest length."""
    return gradient_memory(config, 1, -(-config.longest // 8) * 8, Layout(), remat)


def gradient_memory(config: Config, rows: int, length: int, layout: Layout, remat: str) -> float:
    """MiB beside weights and batch, from shapes alone."""
    preset = dataclasses.replace(PRESETS[config.preset], dtype=config.dtype, param_dtype=config.dtype, remat=remat)
    model = Transformer(preset, LoRAConfig(rank=config.rank, alpha=2.0 * config.rank) if config.rank else None)
    columns = {name: jax.ShapeDtypeStruct((1, rows, length), dtype) for name, dtype in (
        ("tokens", "int32"), ("positions", "int32"), ("segment_ids", "int32"), ("loss_mask", "float32"),
        ("old_logps", "float32"), ("sampler_logps", "float32"))}
    columns["advantages"] = jax.ShapeDtypeStruct((1, rows), "float32")

    def gradient(state: TrainState, columns: dict[str, jax.Array]) -> tuple:
        return accumulate(model, configure(), state, columns, score_by(layout))

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
