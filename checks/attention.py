"""The attention kernels of training against softmax written out: forward and gradient.

The reference (plain_attention) shares no line with the kernels: its mask is made in numpy from what the case says, its
arithmetic is float32 at the highest precision, on the machine's CPU. Queries, keys, values and cotangents are numbers
of bfloat16, so that what is compared is not how they were rounded.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from checks.machine import Machine, reference_device
from checks.tolerance import tolerance, worst_error
from checks.verdicts import Check, Finding, not_here
from errors import InputError
from models import attention_kernels
from models.attention import attend
from models.places import Places, SharedPrompt

PART = "attention"

FORWARD, BACKWARD = 4, 9
"""roundings: scaled queries, which two products pass on, weights, output; scores are float32. Of a gradient these again
but for the output, the cotangents of weights and of scores, and their products"""


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows of T columns; `segments` are (start, length) of each row's segments. `kind` says what the kernel is told of
    them: nothing ("packed"), that each row is one from column 0 ("lengths"), or from elsewhere ("starts"), or that
    completions share a prompt ("shared": all rows hold one prompt of half the columns and two completions)."""

    name: str
    length: int
    segments: tuple[tuple[tuple[int, int], ...], ...]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    window: int | None = None
    kind: str = "packed"


def cases(long: int) -> list[Case]:
    """Of about `long` columns, a multiple of 4: several blocks of each kernel where that is over 1,024."""
    half, part = long // 2, long - long // 8 - 1
    whole, packed = ((0, long),), ((0, half - 3), (half - 3, 1), (half - 2, long // 4))
    return [Case("packed", long, (packed, whole)),
            Case("packed, window", long, (packed, whole), head_dim=128, window=long // 5),
            Case("rows of one segment", long, (((0, part),), whole), head_dim=128, heads=8, kind="lengths"),
            Case("rows of one segment, window", long, (((0, part),), ((0, 1),)), window=long // 3, kind="lengths"),
            Case("rows that begin late", long, (((7, part - 7),), whole), kind="starts"),
            Case("odd length", long - 1, (((0, part),), ((0, half),)), kv_heads=4),
            Case("head_dim 256, one kv head", long, (packed, whole), head_dim=256, kv_heads=1),
            Case("completions that share a prompt", long, (((0, long),),), kind="shared")]


def checks(machine: Machine) -> list[Check]:
    """A CPU, which compiles each for seconds, has float32 of the first two cases alone."""
    long = 2304 if machine.is_accelerator and not machine.quick else 384 if machine.is_accelerator else 192
    found = []
    for kernel in ("xla", "flash", "cudnn"):
        for number, case in enumerate(cases(long)):
            for dtype in ("bfloat16",) if machine.platform == "cpu" and number > 1 else ("bfloat16", "float32"):
                run = _reason(machine, kernel, case, dtype) or functools.partial(check, machine, kernel, case, dtype)
                found.append(Check(PART, f"{kernel}, {case.name}, {dtype}", run))
    return found


INTERPRETED = ("packed, window", "completions that share a prompt")
"""cases of the flash kernel that a CPU interprets, in bfloat16: each takes ten seconds"""


def _reason(machine: Machine, kernel: str, case: Case, dtype: str) -> Any:
    if kernel == "cudnn" and machine.platform != "gpu":
        return not_here("cuDNN's attention needs an NVIDIA GPU; lowered for one, see lowering")
    if kernel == "flash" and machine.platform == "gpu":
        return not_here("the splash kernel is the TPU's")
    if kernel == "flash" and machine.platform == "cpu" and (case.name not in INTERPRETED or dtype == "float32"):
        return not_here("a CPU interprets two cases alone, which takes long enough")
    return None


def check(machine: Machine, kernel: str, case: Case, dtype: str) -> Finding:
    """The kernel as models.attention.attend calls it, for one case."""
    try:
        with interpreted(machine, kernel):
            found = jax.device_get(through(kernel, case, dtype)(*arrays(case, dtype)))
    except InputError as reason:  # what cuDNN does not take
        return Finding("not run", str(reason))
    expected, real = reference(case), is_real(case)
    names, limits = ("forward", "to q", "to k", "to v"), (FORWARD, BACKWARD, BACKWARD, BACKWARD)
    return judged({name: (worst_error(each, other, real), tolerance(dtype, roundings, case.length))
                   for name, each, other, roundings in zip(names, found, expected, limits)})


def judged(errors: dict[str, tuple[float, float]]) -> Finding:
    """Of {what: (error, tolerance)}: wrong where one is above."""
    worst = max(errors, key=lambda name: errors[name][0] / errors[name][1])
    error, limit = errors[worst]
    finite = {name: error if np.isfinite(error) else None for name, (error, _) in errors.items()}
    return Finding("ok" if error <= limit else "wrong", f"largest error {error:.1e}, of {limit:.1e} allowed ({worst})",
                   finite | {"allowed": limit})


@contextlib.contextmanager
def interpreted(machine: Machine, kernel: str) -> Iterator[None]:
    """Has a CPU interpret the TPU's kernel, in blocks of 128."""
    if kernel != "flash" or machine.platform == "tpu":
        yield
        return
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    make = functools.partial(splash.make_splash_mqa_single_device, interpret=True)
    with (mock.patch.object(splash, "make_splash_mqa_single_device", make),
          mock.patch.object(attention_kernels, "FLASH_BLOCK", 128)):
        yield


def through(kernel: str, case: Case, dtype: str) -> Any:
    """(q, k, v, cotangent) -> output and gradients [B, T, ...]; float32 is computed as cli.checks.compute_in has it."""
    at = places(case)

    def run(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        out, back = jax.vjp(lambda *qkv: attend(*qkv, at, at, case.window, kernel, None), q, k, v)
        return out, *back(cotangent)

    def precisely(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            return jax.jit(run)(*arguments)

    return precisely


def arrays(case: Case, dtype: str, seed: int = 0) -> list[Any]:
    """q, k, v and the cotangent of the output, which is 0 at padding."""
    random, rows = np.random.default_rng(seed), len(case.segments)
    shapes = [(rows, case.length, count, case.head_dim)
              for count in (case.heads, case.kv_heads, case.kv_heads, case.heads)]
    q, k, v, cotangent = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    return [jnp.asarray(each, jnp.bfloat16).astype(dtype)
            for each in (q, k, v, np.where(is_real(case)[..., None, None], cotangent, 0))]


def segment_ids(case: Case) -> np.ndarray:
    ids = np.zeros((len(case.segments), case.length), np.int32)
    for row, segments in enumerate(case.segments):
        for number, (start, length) in enumerate(segments, 1):
            ids[row, start : start + length] = number
    return ids


def positions(case: Case) -> np.ndarray:
    made = np.zeros((len(case.segments), case.length), np.int32)
    for row, segments in enumerate(case.segments):
        for start, length in segments:
            made[row, start : start + length] = np.arange(length)
    if case.kind == "shared":
        made[:, case.length - _completion(case) :] -= _completion(case)
    return made


def _completion(case: Case) -> int:
    return case.length // 4


def places(case: Case) -> Places:
    """As batches and the scorer of completions make them."""
    ids = segment_ids(case)
    made = Places(jnp.asarray(positions(case)), jnp.asarray(ids))
    if case.kind == "shared":
        return made.replace(shared=SharedPrompt(case.length - 2 * _completion(case), 2))
    if case.kind in ("lengths", "starts"):
        made = made.replace(lengths=jnp.asarray((ids != 0).sum(axis=1), jnp.int32))
    return made.replace(starts=jnp.asarray((ids != 0).argmax(axis=1))) if case.kind == "starts" else made


def is_real(case: Case) -> np.ndarray:
    """[B, T]"""
    return segment_ids(case) != 0


def mask(case: Case) -> np.ndarray:
    """[B, T, T]: the same segment, not after the query, fewer than `window` positions back; of completions that share a
    prompt, not the other one's."""
    ids, at, columns = segment_ids(case), positions(case), np.arange(case.length)
    back = at[:, :, None] - at[:, None, :]
    seen = (ids[:, :, None] == ids[:, None, :]) & is_real(case)[:, :, None] & (back >= 0)
    seen &= (columns[None, :, None] >= columns[None, None, :])
    if case.window is not None:
        seen &= back < case.window
    if case.kind == "shared":
        first, second = case.length - 2 * _completion(case), case.length - _completion(case)
        seen[:, second:, first:second] = False
    return seen


@functools.lru_cache(maxsize=2)
def reference(case: Case) -> Any:
    """Output and gradients in float32."""
    with jax.default_device(reference_device()), jax.default_matmul_precision("highest"):
        *qkv, cotangent = jax.device_put(arrays(case, "float32"), reference_device())
        seen = jax.device_put(mask(case), reference_device())

        def run(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
            out, back = jax.vjp(lambda *qkv: plain_attention(*qkv, seen), q, k, v)
            return out, *back(cotangent)

        return jax.device_get(jax.jit(run)(*qkv, cotangent))


def plain_attention(q: Any, k: Any, v: Any, seen: Any) -> Any:
    """softmax(q k^T / sqrt(H)) v over the keys seen [B, T, S]; 0 where a query sees none."""
    k, v = (jnp.repeat(each, q.shape[2] // each.shape[2], axis=2) for each in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
    seen = seen[:, None]
    highest = jax.lax.stop_gradient(jnp.max(jnp.where(seen, scores, -1e30), axis=-1, keepdims=True))
    masses = jnp.where(seen, jnp.exp(jnp.where(seen, scores - highest, 0)), 0)
    return jnp.einsum("bnts,bsnh->btnh", masses / jnp.maximum(masses.sum(-1, keepdims=True), 1e-30), v)
