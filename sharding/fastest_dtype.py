"""What to compute in where nothing says it: bfloat16 on accelerators, and on CPUs what is measured to be faster there.

Which it is depends on the processor's instructions, on what XLA makes of them and on the memory. So the first time a
second is spent on finding out, and the answer is kept beside what is compiled (sharding/compilation_cache.py).
"""

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from files import put
from sharding.compilation_cache import folder_in_use

DTYPES = ("float32", "bfloat16")
MIN_SPEEDUP = 1.1
"""times as fast as float32 bfloat16 has to be, since it rounds"""
EMBED, MLP = 576, 1536
WORKLOADS = {"training": (512, 1), "decoding": (16, 8)}
"""what is measured -> (rows, layers): gradients of many rows; few rows, for which weights are read from memory"""
TURNS, SECONDS = 7, 0.5
"""of each work: so many turns of each dtype, and none that begins after so many seconds but the first"""
CPUINFO = Path("/proc/cpuinfo")
STATIC_FIELDS = ("model name", "flags", "Features", "CPU implementer", "CPU part")
"""what CPUINFO says of x86 and ARM that no load changes"""


@functools.cache
def default_dtype() -> str:
    """Compute dtype that is fastest where this process runs."""
    import jax

    return "bfloat16" if jax.default_backend() != "cpu" else _kept_or_measured()


def _kept_or_measured() -> str:
    folder, cache_key = folder_in_use(), cache_key_of(os.environ)
    kept = folder and read_cached(folder, cache_key)
    if kept:
        return kept
    ratios = measure()
    dtype = choose(ratios)
    where = write_cached(folder, cache_key, dtype) if folder else "not kept, as compiled programs are not"
    works = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    print(f"note: bfloat16 is {_mean(ratios):.2f} times as fast as float32 on this CPU ({works}): --dtype auto is "
          f"{dtype} ({where})", file=sys.stderr)
    return dtype


def choose(ratios: Mapping[str, float]) -> str:
    """`ratios` are how many times as fast bfloat16 is, by work."""
    return "bfloat16" if _mean(ratios) >= MIN_SPEEDUP else "float32"


def _mean(ratios: Mapping[str, float]) -> float:
    return math.prod(ratios.values()) ** (1 / len(ratios))


def cache_key_of(environ: Mapping[str, str]) -> dict[str, Any]:
    """All that the answer may change with; `measure` counts the ways of measuring that this file has had."""
    return {"measure": 1, "processor": _processor(), "cpus": _cpus(), "XLA_FLAGS": environ.get("XLA_FLAGS", ""),
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}}


def _processor() -> list[str]:
    """Each kind that is there, by name and instructions."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    static = {line for line in lines if line.partition(":")[0].strip() in STATIC_FIELDS}
    return sorted(static) or [platform.machine(), platform.processor()]


def _cpus() -> int | None:
    """That this process may run on, which is how many threads XLA takes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def read_cached(folder: Path, cache_key: Mapping[str, Any]) -> str | None:
    """The dtype that was kept for just these cache_key; None for a file that holds anything but that."""
    path, texts = _path(folder, cache_key), {_text(cache_key, dtype): dtype for dtype in DTYPES}
    try:
        return texts.get(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def write_cached(folder: Path, cache_key: Mapping[str, Any], dtype: str) -> str:
    """Writes it; where it is kept, or why it cannot be."""
    path = _path(folder, cache_key)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        put(path, _text(cache_key, dtype).encode())
    except OSError as error:
        return f"cannot be kept in {path}: {error.strerror or error}"
    return f"kept in {path}"


def _text(cache_key: Mapping[str, Any], dtype: str) -> str:
    return json.dumps({"dtype": dtype, **cache_key}, indent=1) + "\n"


def _path(folder: Path, cache_key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(cache_key).encode()).hexdigest()
    return folder / f"temper-dtype-{digest[:16]}.json"


def measure() -> dict[str, float]:
    """How many times as fast bfloat16 is, by work, compiled as it would be where JAX_DISABLE_JIT looks for an error."""
    import jax

    ratios = {}
    with jax.disable_jit(False):
        for name, (rows, layers) in WORKLOADS.items():
            seconds = fastest({dtype: compiled(dtype, rows, layers, name == "training") for dtype in DTYPES})
            ratios[name] = seconds["float32"] / seconds["bfloat16"]
    return ratios


def fastest(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each call's fastest turn, so that what else the machine does hardly counts; the calls take turns, the
    first of which is not counted."""
    for call in calls.values():  # the first one has threads to start and memory to take
        call()
    seconds, end = dict.fromkeys(calls, math.inf), time.perf_counter() + SECONDS
    for _ in range(TURNS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return seconds


def compiled(dtype: str, rows: int, layers: int, gradient: bool) -> Callable[[], Any]:
    """x + (silu(x @ G) * (x @ U)) @ D of `rows` rows x, layer after layer; or of one layer, with the gradient in x,
    which multiplies by the transposed weights, too. The call waits for what it computes."""
    import jax
    import jax.numpy as jnp

    def layer(x: jax.Array, weights: Any) -> jax.Array:
        gate, up, down = weights
        return x + (jax.nn.silu(x @ gate) * (x @ up)) @ down

    def forward(x: jax.Array, *weights: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, weights: (layer(x, weights), None), x, weights)[0]

    def backward(x: jax.Array, *weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(lambda x: layer(x, [each[0] for each in weights]).astype(jnp.float32).sum())(x)

    shapes = (rows, EMBED), (layers, EMBED, MLP), (layers, EMBED, MLP), (layers, MLP, EMBED)
    arrays = jax.device_put([np.full(shape, 1 / MLP, jnp.dtype(dtype)) for shape in shapes])
    program = jax.jit(backward if gradient else forward).lower(*arrays).compile()
    return lambda: jax.block_until_ready(program(*arrays))
