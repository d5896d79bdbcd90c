"""Bytes that a decode step moves to and from a TPU's memory, compiled without one, against weights and cache read once.

Counted from the compiled text, of reading one token for every row, up to its logits: operands and results of the
decode loop's instructions, but for those that lie in the chip's own memory (S(1) in their layout), where weights are
fetched ahead. A gather counts what it takes, the paged-attention kernel all pages, each of which is in use and one
row's. What loops inside the step do, which put a row's new key and value in place, is left out: 0.1 % of it all. The
compiler's own count (cost_analysis) is none of memory: it has what is fetched ahead three times, and no pages.
libtpu is needed, best in a folder of its own that PYTHONPATH names: beside jax it disturbs runs on the CPU.
"""

import dataclasses
import functools
import math
import os
import re
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cli.checks import check_positive
from cli.command import run

DESCRIPTION = """Bytes that a decode step compiled for a TPU moves to and from its memory; needs libtpu, no TPU.

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


def main(config: Config) -> None:
    check_positive(config, "rows", "context")
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    table = Table("moved, MB", "weights, MB", "cache, MB", "moved / (weights + cache)",
                  title=f"a decode step of {config.model} on {config.topology}, {config.rows} rows of {config.context}")
    moved, weights, cache = measure(config)
    table.add_row(*(f"{each / 1e6:.0f}" for each in (moved, weights, cache)), f"{moved / (weights + cache):.3f}")
    Console().print(table)


def measure(config: Config) -> tuple[int, int, int]:
    """Bytes that the compiled step moves, of the weights and of the cache."""
    import jax
    from jax.experimental import topologies

    from models.config import PRESETS
    from models.transformer import Transformer
    from sharding.mesh import MeshConfig, make_layout

    devices = topologies.get_topology_desc(platform="tpu", topology_name=config.topology).devices
    layout = make_layout(MeshConfig(), devices[:1])
    model = Transformer(dataclasses.replace(PRESETS[config.model], dtype="bfloat16", param_dtype="bfloat16",
                                            attention="flash"), layout=layout)
    weights, cache, *rest = jax.tree.map(
        lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=layout.sharding()), shapes(model, config))
    compiled = jax.jit(functools.partial(read, model), donate_argnums=1).lower(weights, cache, *rest).compile()
    return moved_bytes(compiled.as_text()), size(weights), size(cache)


WIDTHS = {"bf16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1}
FREE = ("get-tuple-element", "bitcast", "tuple", "constant", "parameter", "while", "iota")
"""instructions that move nothing, and loops inside the step"""


def moved_bytes(text: str) -> int:
    """Of one time through the longest loop of a compiled program (see the module)."""
    computations = {each.split(" ")[0]: each for each in re.split(r"\n(?=%|ENTRY)", text)}
    body = max((computations[name] for name in re.findall(r"body=(%[\w.\-]+)", text)), key=len)
    found = re.findall(r"^\s*(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$", body, re.MULTILINE)
    types = {name: kind for name, kind, _, _ in found}
    total = 0
    for _, kind, operation, rest in found:
        if operation in FREE or operation.endswith("-done"):
            continue
        if operation.endswith("-start"):
            total += max(bytes_of(kind, on_chip=True), default=0)
            continue
        operands = [sum(bytes_of(types.get(name, ""))) for name in re.findall(r"%[\w.\-]+", rest.split("), ")[0])]
        called = re.search(r"calls=(%[\w.\-]+)", rest)
        if called and " gather(" in computations[called[1]]:
            operands.remove(max(operands))
            total += sum(bytes_of(kind)) + sum(bytes_of(kind, on_chip=True))
        total += sum(operands) + sum(bytes_of(kind))
    return total


def bytes_of(kind: str, on_chip: bool = False) -> list[int]:
    """Sizes of the arrays of a type that lie in the TPU's memory, or in the chip's own."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", kind)
    return [WIDTHS[dtype] * math.prod(int(each) for each in sizes.split(",") if each)
            for dtype, sizes, layout in arrays if dtype in WIDTHS and ("S(1)" in layout) == on_chip]


def read(model: Any, weights: Any, cache: Any, token: Any, position: Any, table: Any, steps: Any) -> Any:
    """Decodes the likeliest tokens, as rollouts.decoder does."""
    import jax
    import jax.numpy as jnp

    from models import decoding

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        made, cache, token = carry
        hidden, cache = decoding.forward(model, weights, cache, token[:, None], (position + made)[:, None], table)
        logits = decoding.project(model, weights, hidden[:, 0])
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
            jax.eval_shape(lambda: decoding.init_cache(model.config, 1, rows * pages, PAGE, model.layout)),
            np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.zeros((rows, pages), np.int32), np.int32(1))


def size(tree: Any) -> int:
    import jax

    return sum(math.prod(each.shape) * each.dtype.itemsize for each in jax.tree.leaves(tree))


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
