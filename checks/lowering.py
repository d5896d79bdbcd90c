"""What accelerators would run, lowered and, with libtpu, compiled on a machine that has none.

For CUDA, lowering shows that JAX takes what cuDNN's attention is asked for; for TPUs, that Mosaic takes the Pallas
kernels. libtpu, the TPU's compiler, goes further: to a program, with the memory that it needs.
"""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np

from checks import attention, paged
from checks.machine import Machine
from checks.verdicts import Check, Finding
from errors import InputError

PART = "lowering"
LONG = 1152
TOPOLOGY = "v5e:2x2"
HOW = "libtpu is not here: pip install --no-deps --target DIR libtpu, then PYTHONPATH=DIR in front of the command"


def checks(machine: Machine) -> list[Check]:
    """A CPU's alone: an accelerator runs its own."""
    if machine.platform != "cpu":
        return []
    kernels = [(f"{case.name}, bfloat16", functools.partial(of_attention, case)) for case in attention.cases(LONG)]
    decoding = [(f"paged, {case.name}", functools.partial(of_paged, case)) for case in _paged_cases(machine)]
    return [*(Check(PART, f"CUDA: cudnn, {name}", functools.partial(lower, "cuda", "cudnn", make))
              for name, make in kernels),
            *(Check(PART, f"TPU: flash, {name}", functools.partial(lower, "tpu", "flash", make))
              for name, make in [*kernels, *decoding]),
            Check(PART, "TPU: flash and paged kernels compiled", functools.partial(compile_for_tpu, [
                make for _, make in (*kernels[1:3], *decoding[:1])]))]


def _paged_cases(machine: Machine) -> list[paged.Case]:
    return [case for case in paged.cases(machine._replace(quick=False)) if case.queries == 1 and not case.window
            and case.head_dim % 128 == 0]


def of_attention(case: attention.Case, kernel: str) -> tuple[Callable[..., Any], list[Any]]:
    """(forward and gradient, its arguments)."""
    at = attention.places(case)

    def run(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        out, back = jax.vjp(lambda *qkv: attention.attend(*qkv, at, at, case.window, kernel, None), q, k, v)
        return out, *back(cotangent)

    return run, attention.arrays(case, "bfloat16")


def of_paged(case: paged.Case, kernel: str) -> tuple[Callable[..., Any], list[Any]]:
    q, k, v = (jax.numpy.asarray(each, "bfloat16") for each in paged.contexts(case))
    return functools.partial(paged.decode, case, kernel), [q, k, v]


def lower(platform: str, kernel: str, make: Callable[[str], tuple[Callable[..., Any], list[Any]]]) -> Finding:
    function, arguments = make(kernel)
    try:
        with _cudnn_taken_for_granted():
            text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    except InputError as reason:
        return Finding("not run", str(reason))
    calls = text.count("__cudnn$") if platform == "cuda" else text.count("tpu_custom_call")
    return Finding("ok" if calls else "wrong", f"{calls} calls of the kernel" if calls else "the kernel is not called")


@contextlib.contextmanager
def _cudnn_taken_for_granted() -> Iterator[None]:
    """JAX asks for cuDNN's version even where it only lowers."""
    from jax._src.cudnn import fused_attention_stablehlo

    with mock.patch.object(fused_attention_stablehlo, "check_cudnn_version", return_value=91000):
        yield


def compile_for_tpu(makes: list[Callable[..., Any]]) -> Finding:
    if importlib.util.find_spec("libtpu") is None:
        return Finding("not run", HOW)
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    sharding = SingleDeviceSharding(topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices[0])
    for make in makes:
        function, arguments = make("flash")
        shapes = [jax.ShapeDtypeStruct(np.shape(each), each.dtype, sharding=sharding) for each in arguments]
        jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",)).compile()
    return Finding("ok", f"{len(makes)} programs for a {TOPOLOGY.partition(':')[0]}")
