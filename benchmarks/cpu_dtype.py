"""Which compute dtype is faster on this CPU: bfloat16 or float32, by turns; and what Temper would choose.

Two measurements: bare matmuls of the sizes of SmolLM2-135M's mlp, x @ W (forward) and x @ W.T (backward, where the
frozen W is read the other way), and the LoRA train step of the model cut to a few layers, with random weights.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from batch import Batch
from cli import command
from cli.checks import check_positive
from models.config import PRESETS, ModelConfig
from models.lora import LoRAConfig
from models.transformer import Transformer, init_variables
from objectives.sft import sft
from sharding.fastest_dtype import default_dtype
from sharding.layout import Layout
from sharding.mesh import MeshConfig, make_layout
from sharding.placement import Placement
from training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from training.state import init_state
from training.step import make_train_step

DESCRIPTION = """Time matmuls and LoRA train steps in bfloat16 and float32, by turns.

  python -m benchmarks.cpu_dtype --num-layers 4 --rounds 5"""

DTYPES = ("bfloat16", "float32")
MATMULS = 10
"""in one call, so that it takes long enough to be timed"""


@dataclasses.dataclass(frozen=True)
class Config:
    preset: str = "smollm2-135m"
    """architecture (models.config.PRESETS); the weights are random"""
    num_layers: int = 4
    """layers that are kept of it"""
    batch_size: int = 8
    """rows of a step"""
    length: int = 288
    """tokens of a row"""
    rounds: int = 5
    """turns of each dtype, after one that warms up"""
    rank: int = 16
    """of LoRA, on all linear layers"""


def main(config: Config) -> None:
    check_positive(config, "num_layers", "batch_size", "length", "rounds", "rank")
    model = dataclasses.replace(PRESETS[config.preset], num_layers=config.num_layers)
    tokens = config.batch_size * config.length
    table = Table("", *DTYPES, title=f"{config.preset}, {config.num_layers} layers, {tokens} tokens a step")
    for name, transposed in (("x @ W", False), ("x @ W.T", True)):
        seconds = measure({dtype: matmul(model, tokens, dtype, transposed) for dtype in DTYPES}, config.rounds)
        gflop = 2e-9 * tokens * model.embed_dim * model.mlp_dim * MATMULS
        table.add_row(f"{name}, GFLOP/s", *(spread(gflop, each) for each in seconds.values()))
    seconds = measure({dtype: train_step(config, model, dtype) for dtype in DTYPES}, config.rounds)
    table.add_row("LoRA step, tokens/s", *(spread(tokens, each) for each in seconds.values()))
    print_results(table, faster=min(DTYPES, key=lambda dtype: statistics.median(seconds[dtype])))


def spread(work: float, seconds: list[float]) -> str:
    """Work a second: median (minimum to maximum)."""
    speeds = [work / each for each in seconds]
    return f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"


def print_results(table: Table, faster: str) -> None:
    """The table, and whether default_dtype chose what was faster."""
    console, chosen = Console(), default_dtype()
    console.print(table)
    verdict = "which is the faster one here" if chosen == faster else f"but {faster} is the faster one here"
    console.print(f"--dtype auto chooses {chosen}, {verdict} (by the LoRA step)", soft_wrap=True)
    console.print(f"jax {jax.__version__} on {jax.default_backend()}", highlight=False)


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, its results waited for; the calls take turns, and the first, warm-up turn is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: each[1:] for name, each in seconds.items()}


def matmul(model: ModelConfig, tokens: int, dtype: str, transposed: bool) -> Callable[[], jax.Array]:
    """MATMULS products, one after the other, of x [tokens, D] with W [D, F], or with W.T, W stored as [F, D]."""
    weight_key, x_key = jax.random.split(jax.random.key(0))
    shape = (model.mlp_dim, model.embed_dim) if transposed else (model.embed_dim, model.mlp_dim)
    weights = jax.random.normal(weight_key, (MATMULS, *shape), dtype)
    x = jax.random.normal(x_key, (tokens, model.embed_dim), dtype)
    product = jax.jit(lambda x, weights: jax.lax.map(lambda w: (x @ (w.T if transposed else w)).sum(), weights))
    return lambda: product(x, weights)


def train_step(config: Config, model_config: ModelConfig, dtype: str) -> Callable[[], Any]:
    """The library's own LoRA step, its state kept from call to call; random weights, random tokens."""
    layout = make_layout(MeshConfig())
    model = Transformer(dataclasses.replace(model_config, dtype=dtype, param_dtype=dtype),
                        LoRAConfig(rank=config.rank, alpha=2.0 * config.rank), layout=layout)
    schedule = make_schedule(OptimizerConfig(schedule="constant"), 2e-4, max_steps=0)
    optimizer = make_optimizer(OptimizerConfig(), schedule)
    state = init_state(model, random_params(model, layout), optimizer, jax.random.key(0), layout)
    step = make_train_step(model.clone(training=True), sft, optimizer, schedule, state)
    rows = list(range(config.batch_size))
    batch = Placement(config.batch_size, 1, layout).put(random_batch(config, model_config.vocab_size), rows)

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    return call


def random_params(model: Transformer, layout: Layout) -> Any:
    """The `params` collection as training starts from nothing."""
    def make() -> Any:
        return init_variables(model, jax.random.key(0))["params"]

    shardings = layout.tree_shardings(jax.eval_shape(make))
    return jax.jit(lambda: nn.meta.unbox(make()), out_shardings=shardings)()


def random_batch(config: Config, vocab_size: int) -> Batch:
    """Whole rows of random ids, every token but the first a target."""
    shape = (config.batch_size, config.length)
    positions = np.broadcast_to(np.arange(config.length, dtype=np.int32), shape)
    tokens = np.random.default_rng(0).integers(0, vocab_size, shape, dtype=np.int32)
    return {"tokens": tokens, "positions": positions, "segment_ids": np.ones(shape, np.int32),
            "loss_mask": (positions > 0).astype(np.float32)}


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
