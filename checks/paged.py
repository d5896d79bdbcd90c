"""The engine's paged attention against softmax written out over each row's own context.

Pages hold junk of earlier contexts, lie anywhere, and are written as the engine writes them: the prompts a part at a
time, then one position a row, at which the decode kernel then attends. Beside it, queries of a part of a prompt.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checks.attention import FORWARD, judged, plain_attention
from checks.machine import Machine, reference_device
from checks.tolerance import tolerance, worst_error
from checks.verdicts import Check, Finding, not_here
from models.paged_attention import attend_to_pages, write_to_pages
from models.places import Places

PART = "paged attention"
PAGE = 128


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows whose contexts have these lengths; the last `queries` positions of each are queries."""

    name: str
    lengths: tuple[int, ...]
    queries: int = 1
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 128
    window: int | None = None
    page: int = PAGE


def cases(machine: Machine) -> list[Case]:
    lengths, page = ((5, 129, 700, 1024), PAGE) if not machine.quick else ((3, 17, 40, 64), 16)
    of_size = functools.partial(Case, page=page)
    return [of_size("one query", lengths), of_size("one query, head_dim 64", lengths, head_dim=64),
            of_size("one query, window", lengths, window=page + 3),
            of_size("one query, one kv head", lengths, heads=8, kv_heads=1, head_dim=256),
            of_size("part of a prompt", lengths, queries=3),
            of_size("part of a prompt, window", lengths, queries=3, window=page // 2)]


def checks(machine: Machine) -> list[Check]:
    found = []
    for kernel in ("xla", "flash"):
        for case in cases(machine):
            for dtype in ("bfloat16", "float32"):
                run = _reason(machine, kernel, case, dtype) or functools.partial(check, machine, kernel, case, dtype)
                found.append(Check(PART, f"{kernel}, {case.name}, {dtype}", run))
    return found


def _reason(machine: Machine, kernel: str, case: Case, dtype: str) -> Any:
    """What the Pallas kernel does not take is plain XLA in the engine, too, and is checked as such."""
    if kernel == "xla":
        return None
    if machine.platform == "gpu":
        return not_here("the Pallas paged kernel is the TPU's")
    if case.queries > 1 or case.window or case.head_dim % 128 or dtype == "float32":
        return not_here("the Pallas paged kernel takes one query, bfloat16, no window, head_dim a multiple of 128")
    return None


def check(machine: Machine, kernel: str, case: Case, dtype: str) -> Finding:
    arrays = contexts(case)
    with _interpreted(machine, kernel), jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        q, k, v = (jnp.asarray(each, dtype) for each in arrays)
        found = jax.device_get(jax.jit(functools.partial(decode, case, kernel))(q, k, v))
    error = worst_error(found, expected(case, arrays), is_query(case))
    return judged({"forward": (error, tolerance(dtype, FORWARD, max(case.lengths)))})


def contexts(case: Case, seed: int = 0) -> list[np.ndarray]:
    """Queries, keys and values of every position, numbers of bfloat16 in float32."""
    random, shape = np.random.default_rng(seed), (len(case.lengths), max(case.lengths))
    return [np.asarray(jnp.asarray(random.standard_normal((*shape, count, case.head_dim)), jnp.bfloat16), np.float32)
            for count in (case.heads, case.kv_heads, case.kv_heads)]


def is_query(case: Case) -> np.ndarray:
    """[B, queries], False where a context has fewer positions than `queries`."""
    return _positions(case) >= 0


def _positions(case: Case) -> np.ndarray:
    """[B, queries] of the last ones; -1 where there are none."""
    made = np.asarray(case.lengths)[:, None] - case.queries + np.arange(case.queries)
    return np.where(made < 0, -1, made).astype(np.int32)


def decode(case: Case, kernel: str, q: Any, k: Any, v: Any) -> Any:
    """[B, queries, N, H], through pages that were full of junk."""
    rows, longest = len(case.lengths), max(case.lengths)
    width = -(-longest // case.page)
    table = jnp.asarray(np.random.default_rng(1).permutation(2 * rows * width)[: rows * width].reshape(rows, width),
                        jnp.int32)
    last = jnp.asarray(_positions(case))
    before = np.broadcast_to(np.arange(longest), (rows, longest))
    before = jnp.asarray(np.where(before < np.asarray(case.lengths)[:, None] - case.queries, before, -1), jnp.int32)
    pages = [jnp.full((1, case.kv_heads, 2 * rows * width, case.page, case.head_dim), 7.0, k.dtype) for _ in range(2)]

    def at_last(each: Any) -> Any:
        return jnp.take_along_axis(each, jnp.maximum(last, 0)[..., None, None], axis=1)

    for positions, take in ((before, lambda each: each), (last, at_last)):
        pages = [write_to_pages(held, take(new), table, positions, kernel, None)
                 for held, new in zip(pages, (k, v), strict=True)]
    places = Places(last, (last >= 0).astype(jnp.int32), table=table)
    return attend_to_pages(at_last(q), *pages, places, case.window, kernel, None)


def expected(case: Case, arrays: list[np.ndarray]) -> np.ndarray:
    last = _positions(case)
    back = last[:, :, None] - np.arange(max(case.lengths))
    seen = (back >= 0) & (back < (case.window or back.size))
    with jax.default_device(reference_device()), jax.default_matmul_precision("highest"):
        q, k, v = (jax.device_put(each, reference_device()) for each in arrays)
        q = jnp.take_along_axis(q, np.maximum(last, 0)[..., None, None], axis=1)
        return jax.device_get(plain_attention(q, k, v, seen))


@contextlib.contextmanager
def _interpreted(machine: Machine, kernel: str) -> Iterator[None]:
    """Has a CPU interpret the TPU's kernel."""
    if kernel != "flash" or machine.platform == "tpu":
        yield
        return
    from jax.experimental.pallas import tpu as pltpu

    with pltpu.force_tpu_interpret_mode():
        yield
