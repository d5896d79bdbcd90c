"""Memory of the scorer's gradient: compiled, never run, and searched for an array of the size [B, T, V].

`models.projection.statistics` promises that no such array exists, forward or backward. This compiles its value and
gradient at the vocabulary of Qwen 2.5 and asks the compiler; it exits with status 1 where the promise does not hold.
The plain way, log_softmax of all logits, is compiled beside it: the search must find the array there.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from cli import command
from cli.checks import check_positive
from models.projection import Statistics, statistics
from sharding.memory import logits_at_a_time

DESCRIPTION = """Compile the scorer's gradient and look for a [B, T, V] array in it.

  python -m benchmarks.scorer_memory"""

ARRAY = re.compile(r"\b(?:pred|[a-z]+\d+\w*)\[([\d,]+)\]")
"""an array's type in HLO text, such as f32[8,1024,896]"""


@dataclasses.dataclass(frozen=True)
class Config:
    batch_size: int = 8
    """B"""
    length: int = 1024
    """T"""
    embed: int = 896
    """D"""
    vocab: int = 151_936
    """V"""


class Compiled(NamedTuple):
    """What the compiler said of one gradient."""

    temporary: int
    """bytes beside arguments and results"""
    largest: str
    """the array of most elements, as HLO text has it"""
    share: float
    """its elements / (B T V)"""


def main(config: Config) -> None:
    check_positive(config, "batch_size", "length", "embed", "vocab")
    table = Table("scorer", "dtype", "gradient of", "temp GiB", "largest array", "/ BTV",
                  title=f"B={config.batch_size} T={config.length} D={config.embed} V={config.vocab}")
    worst = 0.0
    for dtype in ("bfloat16", "float32"):
        for name, arguments in (("hidden", (0,)), ("hidden, kernel", (0, 1))):
            compiled = compile_gradient(config, statistics, dtype, arguments)
            worst = max(worst, compiled.share)
            add_row(table, "Temper", dtype, name, compiled)
        plain = compile_gradient(config, score_plainly, dtype, (0,))
        add_row(table, "plain", dtype, "hidden", plain)
    print_results(config, table)
    if worst >= 0.5:
        sys.exit("an array of half of [B, T, V] or more was found in the scorer's gradient")
    if plain.share < 0.5:
        sys.exit("no array of about [B, T, V] was found in the plain scorer's gradient: the search is blind")


def compile_gradient(config: Config, scorer: Callable[..., Statistics], dtype: str,
                     arguments: tuple[int, ...]) -> Compiled:
    """Compiles the value and gradient of the summed scores, from shapes alone."""
    def loss(hidden: jax.Array, kernel: jax.Array, tokens: jax.Array) -> jax.Array:
        scores = scorer(hidden, kernel, tokens)
        return jnp.sum(scores.logp) + jnp.sum(scores.entropy)

    batch, length = config.batch_size, config.length
    shapes = (jax.ShapeDtypeStruct((batch, length, config.embed), dtype),
              jax.ShapeDtypeStruct((config.embed, config.vocab), dtype),
              jax.ShapeDtypeStruct((batch, length), jnp.int32))
    compiled = jax.jit(jax.value_and_grad(loss, argnums=arguments)).lower(*shapes).compile()
    largest, elements = largest_array(compiled.as_text())
    return Compiled(compiled.memory_analysis().temp_size_in_bytes, largest, elements / (batch * length * config.vocab))


def score_plainly(hidden: jax.Array, kernel: jax.Array, tokens: jax.Array) -> Statistics:
    """The same scores from all logits at once."""
    logits = jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)
    logps = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logps, tokens[..., None], -1)[..., 0]
    return Statistics(chosen, -jnp.sum(jnp.exp(logps) * logps, axis=-1), jax.nn.logsumexp(logits, axis=-1),
                       jax.nn.logsumexp(2 * logps, axis=-1), (chosen >= logps.max(axis=-1)).astype(jnp.float32))


def largest_array(text: str) -> tuple[str, int]:
    """The array of most elements in HLO text, as it is written there, and their number."""
    sizes = {match[0]: math.prod(int(size) for size in match[1].split(",")) for match in ARRAY.finditer(text)}
    return max(sizes.items(), key=lambda item: item[1])


def add_row(table: Table, scorer: str, dtype: str, name: str, compiled: Compiled) -> None:
    table.add_row(scorer, dtype, name, gib(compiled.temporary), compiled.largest.replace("[", r"\["),
                  f"{compiled.share:.2f}")


def print_results(config: Config, table: Table) -> None:
    """The table and the sizes to hold it against."""
    positions = config.batch_size * config.length
    sizes = {"one [B, T, V] array": positions * config.vocab, "one chunk's logits, at most": logits_at_a_time(None),
             "the kernel": config.embed * config.vocab}
    console = Console()
    console.print(table)
    listed = ", ".join(f"{name} {gib(4 * size)} GiB" for name, size in sizes.items())
    console.print(f"in float32: {listed}", soft_wrap=True)
    console.print(f"jax {jax.__version__}, compiled for {jax.default_backend()}", highlight=False)


def gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
