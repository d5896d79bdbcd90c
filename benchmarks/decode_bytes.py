"""Bytes that a decode step accesses, compiled for a TPU without one, against weights and cache read once each.

The compiler's own count, which has a loop's body once: here, of reading one token for every row, up to its logits.
Drawing from them is left out: its branches for controls that nobody uses would be counted, too. What the paged kernel
reads of the pages is not in the count, and weights that are fetched ahead into the chip's own memory are in it three
times: read, written, and read there. So it tells of copies (of a cache, say), and is no bound on what a chip reads.
libtpu is needed, best in a folder of its own that PYTHONPATH names: beside jax it disturbs runs on the CPU.
"""

import dataclasses
import functools
import math
import os
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from cli.checks import check_positive
from cli.command import run

DESCRIPTION = """Bytes accessed by a decode step compiled for a TPU; needs libtpu, no TPU.

  pip install --no-deps --target /tmp/libtpu libtpu
  PYTHONPATH=/tmp/libtpu python -m benchmarks.decode_bytes"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: str = "qwen3-0.6b"
    """a preset"""
    topology: str = "v5e:2x2"
    """of the TPU, of which one device is compiled for"""
    rows: int = 16
    context: int = 1024
    """positions of each row in the cache, all in use"""
    attention: tuple[Literal["flash", "xla"], ...] = ("flash", "xla")
    """kernels; xla's loop over pages is counted for one page"""


def main(config: Config) -> None:
    check_positive(config, "rows", "context")
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    table = Table("attention", "accessed, MB", "weights, MB", "cache, MB", "accessed / (weights + cache)",
                  title=f"a decode step of {config.model} on {config.topology}, {config.rows} rows of {config.context}")
    for attention in config.attention:
        accessed, weights, cache = measure(config, attention)
        table.add_row(attention, *(f"{each / 1e6:.0f}" for each in (accessed, weights, cache)),
                      f"{accessed / (weights + cache):.3f}")
    Console().print(table)


def measure(config: Config, attention: str) -> tuple[float, int, int]:
    """Bytes accessed by the compiled step, of the weights and of the cache."""
    import jax
    from jax.experimental import topologies

    from models.config import PRESETS
    from models.transformer import Transformer
    from sharding.mesh import MeshConfig, make_mesh

    devices = topologies.get_topology_desc(platform="tpu", topology_name=config.topology).devices
    mesh = make_mesh(MeshConfig(), devices[:1])
    model = Transformer(dataclasses.replace(PRESETS[config.model], dtype="bfloat16", param_dtype="bfloat16",
                                            attention=attention))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh):
        weights, cache, *rest = jax.tree.map(
            lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding), shapes(model, config))
        compiled = jax.jit(functools.partial(read, model), donate_argnums=1).lower(weights, cache, *rest).compile()
    return compiled.cost_analysis()["bytes accessed"], size(weights), size(cache)


def read(model: Any, weights: Any, cache: Any, token: Any, position: Any, table: Any, steps: Any) -> Any:
    """Decodes the likeliest tokens, as rollouts.decoder does."""
    import jax
    import jax.numpy as jnp

    from models import decoding

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        made, cache, token = carry
        hidden, cache = decoding.forward(model, weights, cache, token[:, None], (position + made)[:, None], table)
        logits = decoding.project(model.config, weights, hidden[:, 0])
        return made + 1, cache, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return jax.lax.while_loop(lambda carry: carry[0] < steps, step, (jnp.int32(0), cache, token))


def shapes(model: Any, config: Config) -> tuple[Any, ...]:
    """Of read's arguments after the model, for rows whose contexts fill the cache."""
    import flax.linen as nn
    import jax

    from models import decoding
    from models.transformer import init_variables
    from rollouts.engine import PAGE

    rows, pages = config.rows, -(-config.context // PAGE)
    variables = jax.eval_shape(lambda: nn.unbox(init_variables(model, jax.random.key(0))))
    return (jax.eval_shape(functools.partial(decoding.prepare, model), variables),
            jax.eval_shape(lambda: decoding.init_cache(model.config, 1, rows * pages, PAGE)),
            np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.zeros((rows, pages), np.int32), np.int32(1))


def size(tree: Any) -> int:
    import jax

    return sum(math.prod(each.shape) * each.dtype.itemsize for each in jax.tree.leaves(tree))


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
