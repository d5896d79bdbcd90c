"""What each --remat policy leaves in a TPU's memory and in its host's between the passes, compiled without a TPU.

The gradient of a preset's layers on one device, weights in bfloat16: temporaries are what the compiler sets aside
beside weights, rows and gradients. libtpu is needed, best in a folder of its own that PYTHONPATH names: beside jax it
disturbs runs on the CPU.
"""

import dataclasses
import os
import re
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from cli.checks import check_positive
from cli.command import run
from models.settings import Remat

DESCRIPTION = """Temporaries of a gradient compiled for a TPU, by what is recomputed; needs libtpu, no TPU.

  pip install --no-deps --target /tmp/libtpu libtpu
  PYTHONPATH=/tmp/libtpu python -m benchmarks.remat_memory"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: str = "qwen3-0.6b"
    """a preset"""
    topology: str = "v5p:2x2x1"
    """of the TPU, of which one device is compiled for"""
    rows: int = 4
    length: int = 4096
    """positions of each row"""


def main(config: Config) -> None:
    check_positive(config, "rows", "length")
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    table = Table("--remat", "on the device, MiB", "on the host, MiB", "calls of the attention kernel, forward",
                  title=f"{config.model} on {config.topology}, {config.rows} rows of {config.length}")
    for remat in get_args(Remat):
        compiled = compile_gradient(config, remat)
        memory, text = compiled.memory_analysis(), compiled.as_text()
        calls = len(re.findall(r"%splash_mqa_fwd\S* = ", text)) / len(re.findall(r"%splash_mqa_dkv\S* = ", text))
        table.add_row(remat, *(f"{size / 2**20:,.0f}" for size in (
            memory.temp_size_in_bytes, memory.host_temp_size_in_bytes)), f"{calls:.0f} a layer")
    Console().print(table)


def compile_gradient(config: Config, remat: str) -> Any:
    """Of the sum of all last hidden states, by all weights."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from models.config import PRESETS
    from models.transformer import Transformer, init_variables

    chip = topologies.get_topology_desc(platform="tpu", topology_name=config.topology).devices[0]
    model = Transformer(dataclasses.replace(PRESETS[config.model], dtype="bfloat16", param_dtype="bfloat16",
                                            attention="flash", remat=remat))
    variables = nn.unbox(jax.eval_shape(lambda: init_variables(model, jax.random.key(0))))
    tokens = jax.ShapeDtypeStruct((config.rows, config.length), jnp.int32)
    variables, tokens = jax.tree.map(
        lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=jax.sharding.SingleDeviceSharding(chip)),
        (variables, tokens))
    total = jax.grad(lambda variables, tokens: model.apply(variables, tokens, tokens, tokens).sum())
    return jax.jit(total).lower(variables, tokens).compile()


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
