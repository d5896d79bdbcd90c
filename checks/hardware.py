"""What the device attains of what its maker states: a large product, and reading and writing its memory."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from checks.machine import Machine
from checks.verdicts import Check, Finding

PART = "hardware"
LEAST_SHARE = 1 / 3
"""of the maker's figure, below which a device is slow: throttled, shared with others, or not the one it is taken for"""
ROUNDS = 20
"""in one program, so that starting it counts for little; an argument of it, so that it is not unrolled and fused"""


def checks(machine: Machine) -> list[Check]:
    return [Check(PART, "bfloat16 product", functools.partial(product, machine)),
            Check(PART, "memory", functools.partial(memory, machine))]


def product(machine: Machine) -> Finding:
    """2 n^3 FLOP a round of [n, n] @ [n, n]."""
    size = 512 if machine.quick else 8192
    x = jnp.full((size, size), 1 / size, jnp.bfloat16)

    def rounds(x: Any, count: Any) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, y: (y @ x), x)

    rate = 2 * size**3 * ROUNDS / seconds_of(rounds, x, ROUNDS) / 1e12
    return rated("TFLOP/s", rate, machine.peak_flops and machine.peak_flops / 1e12)


def memory(machine: Machine) -> Finding:
    """Each round reads and writes an array once."""
    x = jnp.zeros((2**24 if machine.quick else 2**29,), jnp.float32)

    def rounds(x: Any, count: Any) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, y: y + 1, x)

    rate = 2 * x.nbytes * ROUNDS / seconds_of(rounds, x, ROUNDS) / 1e9
    return rated("GB/s", rate, machine.bandwidth and machine.bandwidth / 1e9)


def rated(unit: str, rate: float, stated: float | None) -> Finding:
    """A rate beside what the maker states of it; what is not known is measured alone."""
    figures = {unit: rate, "share": stated and rate / stated}
    if stated is None:
        return Finding("ok", f"{rate:,.1f} {unit}; what the maker states is not known here", figures)
    return Finding("ok" if rate >= LEAST_SHARE * stated else "slow",
                   f"{rate:,.1f} {unit}, {rate / stated:.0%} of the {stated:,.0f} that the maker states", figures)


def seconds_of(function: Callable[..., Any], *arguments: Any, times: int = 5) -> float:
    """The median time of a call, behind one that compiles."""
    compiled, seconds = jax.jit(function), []
    jax.block_until_ready(compiled(*arguments))
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
