"""Log-probabilities of sampled tokens: the engine's, as drawn, against the trainer's scorer on the same weights.

At learning rate 0 the two are one model computed in two ways: token by token through the cache, and as whole rows. What
they differ by is off-policy noise in every ratio of online training. An adapter's B is random, so that it matters.
"""

import dataclasses
import functools
import itertools
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from batch import Row, pad
from cli.checks import check_positive
from cli.command import run
from data.tokenizer import load_tokenizer
from models.lora import LoRAConfig
from models.pretrained import EMBEDDED, open_pretrained
from models.scoring import score
from models.transformer import Transformer
from rollouts.engine import Engine, capacity_for
from rollouts.generate import Completion, generate
from rollouts.sampling import make_controls
from sharding.mesh import MeshConfig, make_layout

DESCRIPTION = """Differences of log-probabilities between sampler and trainer, by dtype, with and without an adapter.

  python -m benchmarks.sampler_vs_trainer"""

PROMPTS = ("What is 3 + 4?", "Write a short story about a robot.", "Explain photosynthesis to a child.",
           "Name three rivers of Europe and where they end.", "Why is the sky blue?", "Give me a recipe for bread.",
           "A train leaves at 3 and arrives at 7. How long does it take?", "What did Newton find out?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: str = EMBEDDED
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    group_size: int = 2
    """completions of each of eight prompts"""
    max_new_tokens: int = 64
    rank: int = 16
    """of the adapter"""
    b: float = 0.02
    """standard deviation of the adapter's B"""


def main(config: Config) -> None:
    check_positive(config, "group_size", "max_new_tokens", "rank", "b")
    table = Table("dtype", "adapter", "mean difference", "largest", "tokens", "sampling, s", "scoring, s",
                  title=f"log-probabilities of {config.model}, sampler against trainer")
    for dtype, adapted in itertools.product(config.dtypes, (False, True)):
        table.add_row(dtype, "LoRA" if adapted else "none", *measure(config, dtype, adapted))
    Console().print(table)


def measure(config: Config, dtype: str, adapted: bool) -> list[str]:
    """A line of the table; the second pass of each side is timed."""
    opened, layout = open_pretrained(config.model), make_layout(MeshConfig(), jax.devices()[:1])
    model, variables = opened.load(layout, dtype=dtype, param_dtype=dtype if adapted else "float32")
    if adapted:
        model = model.clone(lora=LoRAConfig(config.rank, 2.0 * config.rank))
        variables["lora"] = random_adapter(model, config.b)
    tokenizer = load_tokenizer(opened.tokenizer)
    prompts = [tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n") for text in PROMPTS]
    engine = Engine(model, 16, capacity_for(model, 16, max(map(len, prompts)) + config.max_new_tokens))
    sample = functools.partial(sampled, engine, variables, prompts, config)
    _, (completions, sampling) = sample(), timed(sample)
    rows = padded([prompt for prompt in prompts for _ in range(config.group_size)], completions)
    compiled = jax.jit(functools.partial(score, model))
    scores = lambda: jax.block_until_ready(compiled(variables, rows).logps)  # noqa: E731
    _, (logps, scoring) = scores(), timed(scores)
    differences = np.abs(np.asarray(logps)[np.asarray(rows["loss_mask"]) > 0]
                         - np.concatenate([each.logps for each in completions]))
    return [f"{np.mean(differences):.2e}", f"{np.max(differences):.2e}", str(len(differences)), f"{sampling:.2f}",
            f"{scoring:.2f}"]


def random_adapter(model: Transformer, b: float) -> Any:
    from flax.linen import meta

    from models.transformer import init_variables

    lora = meta.unbox(jax.jit(functools.partial(init_variables, model))(jax.random.key(1)))["lora"]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key == "a" else b * jax.random.normal(jax.random.key(2), leaf.shape), lora)


def sampled(engine: Engine, variables: Any, prompts: list[list[int]], config: Config) -> list[Completion]:
    engine.load(variables)
    return generate(engine, prompts, jax.random.key(0), max_new_tokens=config.max_new_tokens,
                    controls=make_controls(), group_size=config.group_size)


def padded(prompts: list[list[int]], completions: list[Completion]) -> dict[str, jax.Array]:
    rows = [Row(np.asarray(prompt + each.tokens, np.int32),
                np.asarray([0.0] * len(prompt) + [1.0] * len(each.tokens), np.float32))
            for prompt, each in zip(prompts, completions, strict=True)]
    longest = max(len(row.tokens) for row in rows)
    return jax.tree.map(jnp.asarray, pad([row.columns() for row in rows], [longest]))


def timed(function: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
