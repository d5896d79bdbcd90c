"""Scaled dot-product attention behind one function, `attend`, that picks the kernel.

Every kernel computes softmax(q k^T / sqrt(H)) v over the keys that a query may see: those of its own segment
(equal non-zero `segment_ids`), not after it (`positions`), and fewer than `window` positions back. A new kernel is
one function with `attend`'s arguments and a line in `attend`; no model changes.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from errors import InputError
from sharding.rules import mesh_axes, ways

QUERY_BLOCK = 512
"""queries whose scores the xla kernel holds at a time"""


class Places(NamedTuple):
    """Where the tokens of queries (or keys) stand."""

    positions: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]


def attend(q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], queries: Places,
           keys: Places, window: int | None, implementation: str) -> Float[Array, "B T N H"]:
    """Attention with N query heads in K groups; a padding query (segment 0) gets finite values of no meaning.

    `implementation`: "xla" anywhere; "cudnn" on NVIDIA; "flash" on TPU; "auto" picks by platform. The latter two
    serve whole rows, where positions rise along each segment; decoding with a cache (T != S) takes xla.
    """
    kernel = _pick(implementation, q, k)
    return {"xla": xla_attention, "cudnn": cudnn_attention, "flash": flash_attention}[kernel](
        q, k, v, queries, keys, window)


def _pick(implementation: str, q: jax.Array, k: jax.Array) -> str:
    if implementation not in ("auto", "xla", "cudnn", "flash"):
        raise InputError(f"unknown attention {implementation!r}; there are auto, xla, cudnn, flash")
    whole_rows = q.shape[1] == k.shape[1]
    if implementation != "auto":
        return implementation if whole_rows else "xla"
    if jax.default_backend() == "tpu" and whole_rows and q.shape[1] % 128 == 0:
        return "flash"
    if jax.default_backend() == "gpu" and whole_rows and q.dtype == jnp.bfloat16 and q.shape[-1] <= 128:
        return "cudnn"
    return "xla"


def visible(queries: Places, keys: Places, window: int | None) -> Bool[Array, "B T S"]:
    """True where query t may see key s."""
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    same = (queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :]) & (keys.segment_ids[:, None, :] != 0)
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return same & near


def xla_attention(q, k, v, queries: Places, keys: Places, window):
    """Plain XLA. Scores exist for QUERY_BLOCK queries at a time and are recomputed in the backward pass."""
    block = functools.partial(_attend_block, window=window)
    length = q.shape[1]
    if length <= QUERY_BLOCK:
        return jax.checkpoint(block)(q, k, v, queries, keys)
    split = functools.partial(_split_queries, blocks=-(-length // QUERY_BLOCK))
    out = jax.lax.map(lambda xs: jax.checkpoint(block)(xs[0], k, v, xs[1], keys), jax.tree.map(split, (q, queries)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :length]


def _split_queries(x: Array, blocks: int) -> Array:
    """[B, T, ...] -> [blocks, B, QUERY_BLOCK, ...]; the last block is filled up with zeros (segment 0)."""
    fill = blocks * QUERY_BLOCK - x.shape[1]
    x = jnp.pad(x, [(0, 0), (0, fill)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], blocks, QUERY_BLOCK, *x.shape[2:]), 1, 0)


def _attend_block(q, k, v, queries: Places, keys: Places, *, window):
    groups = q.shape[2] // k.shape[2]
    q = q.reshape(*q.shape[:2], k.shape[2], groups, q.shape[3])
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q.shape[-1])
    # finite, so that the softmax of a padding query, which sees nothing, has no NaN
    scores = jnp.where(visible(queries, keys, window)[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v)
    return out.reshape(*out.shape[:2], -1, out.shape[-1])


def cudnn_attention(q, k, v, queries: Places, keys: Places, window):
    """cuDNN's flash attention (NVIDIA, bfloat16 or float16, H <= 128), through jax.nn."""
    mask = visible(queries, keys, window)
    mask = mask | (queries.segment_ids == 0)[:, :, None]  # padding sees everything: no empty softmax
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="cudnn")


def flash_attention(q, k, v, queries: Places, keys: Places, window):
    """JAX's Pallas splash attention (TPU), one shard of rows and heads a device; T a multiple of 128."""
    kernel = functools.partial(_splash, window=window)
    segments = queries.segment_ids
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(q, k, v, segments)
    rows, heads = mesh_axes(("batch", "kv_heads"))
    heads = heads if k.shape[2] % ways(heads, mesh) == 0 else None
    wide = jax.sharding.PartitionSpec(rows, None, heads, None)
    narrow = jax.sharding.PartitionSpec(rows, None)
    return jax.shard_map(kernel, mesh=mesh, in_specs=(wide, wide, wide, narrow), out_specs=wide,
                         check_vma=False)(q, k, v, segments)


def _splash(q, k, v, segment_ids, *, window):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (batch, length, heads, head_dim), kv_heads = q.shape, k.shape[2]
    groups = heads // kv_heads
    shape = (length, length)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    kernel = splash.make_splash_mqa_single_device(masks.MultiHeadMask([mask] * groups))
    kernel = jax.vmap(kernel, in_axes=(0, 0, 0, None))  # over kv heads
    kernel = jax.vmap(kernel, in_axes=(0, 0, 0, 0))  # over rows
    q = q.reshape(batch, length, kv_heads, groups, head_dim).transpose(0, 2, 3, 1, 4) / math.sqrt(head_dim)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out = kernel(q, k, v, splash.SegmentIds(segment_ids, segment_ids))
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)
