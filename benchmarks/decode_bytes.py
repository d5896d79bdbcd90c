"""Bytes that a decode step accesses, compiled for a TPU without one, against weights and cache read once each.

The compiler's own count, which has a loop's body once: here, of one token for every row. libtpu is needed, best in a
folder of its own that PYTHONPATH names: beside jax it disturbs runs on the CPU.
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
    from rollouts import decoder
    from sharding.mesh import MeshConfig, make_mesh

    devices = topologies.get_topology_desc(platform="tpu", topology_name=config.topology).devices
    mesh = make_mesh(MeshConfig(), devices[:1])
    model = Transformer(dataclasses.replace(PRESETS[config.model], dtype="bfloat16", param_dtype="bfloat16",
                                            attention=attention))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh):
        weights, cache, *rest = jax.tree.map(
            lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding), shapes(model, config))
        compiled = decoder.decode.lower(model, weights, cache, *rest).compile()
    return compiled.cost_analysis()["bytes accessed"], size(weights), size(cache)


def shapes(model: Any, config: Config) -> tuple[Any, ...]:
    """Of decoder.decode's arguments after the model, for rows whose contexts fill the cache."""
    import flax.linen as nn
    import jax

    from models import decoding
    from models.transformer import init_variables
    from rollouts import decoder
    from rollouts.engine import PAGE
    from rollouts.sampling import Controls

    rows, pages = config.rows, -(-config.context // PAGE)
    variables = jax.eval_shape(lambda: nn.unbox(init_variables(model, jax.random.key(0))))
    numbers, flags = np.zeros(rows, np.int32), np.zeros(rows, bool)
    controls = Controls(*(np.full(rows, each) for each in Controls()))
    given = decoder.Rows(*[numbers] * 5, np.zeros((rows, 2), np.uint32), np.zeros((rows, pages), np.int32),
                         np.zeros((rows, decoder.STOPS), np.int32), controls, flags, flags)
    return (jax.eval_shape(functools.partial(decoding.prepare, model), variables),
            jax.eval_shape(lambda: decoding.init_cache(model.config, 1, rows * pages, PAGE)),
            jax.eval_shape(lambda: decoder.init_seen(model, rows)), given, np.int32(0), np.int32(1))


def size(tree: Any) -> int:
    import jax

    return sum(math.prod(each.shape) * each.dtype.itemsize for each in jax.tree.leaves(tree))


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
