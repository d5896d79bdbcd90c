"""Scaled dot-product attention behind one function, `attend`, that picks the kernel.

Every kernel computes softmax(q k^T / sqrt(H)) v over the keys that a query may see: those of its own segment
(equal non-zero `segment_ids`), not after it (`positions`), and fewer than `window` back. A new kernel is one function
with `attend`'s arguments and a line in `attend`; no model changes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from errors import InputError
from models.attention_kernels import LANES, cudnn_attention, flash_attention, xla_attention
from models.places import Places
from sharding.layout import Layout

AMPERE, HOPPER = 8, 9
"""NVIDIA's generations"""


def attend(q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], queries: Places,
           keys: Places, window: int | None, implementation: str, layout: Layout | None) -> Float[Array, "B T N H"]:
    """Attention with N query heads in K groups; a padding query (segment 0) gets finite values of no meaning.

    `implementation`: "xla" anywhere; "cudnn" on NVIDIA; "flash" on TPU; "auto" picks by platform. Cudnn and flash
    serve whole rows, whose positions count up by 1 along each segment; T != S takes xla. Where T = S, keys are of the
    queries' columns, and positions grow along each segment: later columns may be left out. Where `queries.shared` says
    that completions share a prompt, keys are of the same rows.
    Raises InputError for an unknown kernel, and where cudnn is asked for what it cannot do.
    """
    if queries.shared:
        return _attend_sharing(q, k, v, queries, window, implementation, layout)
    kernel = _choose_kernel(implementation, q, k)
    return {"xla": xla_attention, "cudnn": cudnn_attention, "flash": flash_attention}[kernel](
        q, k, v, queries, keys, window, layout)


def _attend_sharing(q: Array, k: Array, v: Array, places: Places, window: int | None, implementation: str,
                    layout: Layout | None) -> Array:
    """Each completion as a row of its own behind its prompt, one segment; the xla kernel has the prompt's queries once.
    """
    prompt_length, count = places.shared

    def prompt(x: Array) -> Array:  # [B, W + G C, ...] -> [B, W, ...]
        return x[:, :prompt_length]

    def completion(x: Array) -> Array:  # -> [B G, C, ...]
        return x[:, prompt_length:].reshape(len(x) * count, -1, *x.shape[2:])

    def whole(x: Array) -> Array:  # -> [B G, W + C, ...]
        return jnp.concatenate([jnp.repeat(prompt(x), count, axis=0), completion(x)], axis=1)

    places = places.replace(shared=None)
    keys, values, rows = whole(k), whole(v), jax.tree.map(whole, places)
    if _choose_kernel(implementation, whole(q), keys) == "xla":
        at = jax.tree.map(prompt, places)
        first = xla_attention(prompt(q), prompt(k), prompt(v), at, at, window, layout)
        rest = xla_attention(completion(q), keys, values, jax.tree.map(completion, places), rows, window,
                             layout)
    else:
        real = rows.segment_ids != 0
        rows = rows.replace(starts=jnp.argmax(real, axis=1), lengths=jnp.sum(real, axis=1, dtype=jnp.int32))
        out = attend(whole(q), keys, values, rows, rows, window, implementation, layout)
        first, rest = out[::count, :prompt_length], out[:, prompt_length:]
    return jnp.concatenate([first, rest.reshape(len(q), -1, *rest.shape[2:])], axis=1)


def _choose_kernel(implementation: str, q: jax.Array, k: jax.Array) -> str:
    if implementation not in ("auto", "xla", "cudnn", "flash"):
        raise InputError(f"unknown attention {implementation!r}; there are auto, xla, cudnn, flash")
    if q.shape[1] != k.shape[1] or q.shape[1] == 1:
        return "xla"
    if implementation == "cudnn" and not _cudnn_takes(q):
        raise InputError(f"attention 'cudnn' takes bfloat16 or float16, an even number of positions, and a head_dim "
                         f"of at most 128 (256 on Hopper and later) that is a multiple of 8; not {q.dtype}, "
                         f"{q.shape[1]} and {q.shape[3]}: choose 'auto' or 'xla'")
    return implementation if implementation != "auto" else _fastest(q)


def _fastest(q: jax.Array) -> str:
    backend = jax.default_backend()
    if backend == "tpu" and q.shape[1] >= LANES:
        return "flash"
    if backend == "gpu" and _cudnn_takes(q) and _generation() >= AMPERE:
        return "cudnn"
    return "xla"


def _cudnn_takes(q: jax.Array) -> bool:
    """What cuDNN's attention asks of its inputs, with a mask and in the backward pass, too."""
    largest = 256 if _generation() >= HOPPER else 128
    return (q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[1] % 2 == 0
            and q.shape[3] % 8 == 0 and q.shape[3] <= largest)


def _generation() -> int:
    """8 where NVIDIA's compute capability is "8.0"; 0 for AMD's "gfx942" and the like, and where there is no GPU."""
    major = str(getattr(jax.local_devices()[0], "compute_capability", "")).split(".")[0]
    return int(major) if major.isdigit() else 0
