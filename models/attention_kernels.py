"""The kernels behind models.attention.attend: plain XLA, cuDNN's (NVIDIA) and splash attention (TPU).

All are functions of q [B, T, N, H], k and v [B, S, K, H], where queries and keys stand, the window and the layout. What
they need so as not to run again in the backward pass bears the name ATTENTION (models/remat.py).
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array

from models.places import Places, visible
from models.remat import ATTENTION, attention_saveable
from sharding.layout import COPIES, Layout, on_each

QUERY_BLOCK = 512
"""queries whose scores the xla kernel holds at a time"""

KEPT_SCORES = 2**23
"""scores of a layer (32 MiB in float32) up to which the xla kernel keeps them for the backward pass"""

PART, MAX_PARTS = 128, 4
"""queries of a part that the xla kernel computes with the keys up to its end, at the least, and the most such parts"""

MASKED_QUERIES = 512
"""queries for which the cudnn kernel holds a mask at a time"""

FLASH_BLOCK = 1024
"""queries, and keys, that the flash kernel holds at a time, at most; a multiple of LANES"""

FLASH_BYTES = 2**19
"""of a block's queries: for more, a kernel of a TPU v5p runs out of the 16 MiB that it may have of its memory"""

FUSED_BLOCKS = 8
"""of keys, up to which the flash kernel's backward pass is one: every block adds an array like q"""

LANES = 128
"""what the TPU's registers hold side by side: blocks are multiples of it"""


def xla_attention(q, k, v, queries: Places, keys: Places, window, layout: Layout | None = None):
    """Plain XLA, the scores of QUERY_BLOCK queries at a time. Those of a small batch are kept for the backward pass,
    more than KEPT_SCORES of them recomputed there. As many keys as queries are of the same columns."""
    queries, keys = (places.replace(lengths=None, starts=None) for places in (queries, keys))
    whole = q.shape[1] != k.shape[1] or layout is not None and layout.ways("query_length") > 1
    parts = 1 if whole else min(MAX_PARTS, q.shape[1] // PART)
    kept = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[1] <= KEPT_SCORES
    attend = functools.partial(_in_blocks, window=window, kept=kept)
    out = attend(q, k, v, queries, keys) if parts < 2 else _causally(attend, parts, q, k, v, queries, keys)
    return checkpoint_name(out, ATTENTION)


def _causally(attend, parts, q, k, v, queries: Places, keys: Places):
    """Queries in parts, each with the keys up to its end alone: none sees a key of a later column."""
    ends, outs = [round(q.shape[1] * part / parts) for part in range(parts + 1)], []
    for start, end in itertools.pairwise(ends):
        own = jax.tree.map(lambda x: x[:, start:end], (q, queries))  # noqa: B023
        seen = jax.tree.map(lambda x: x[:, :end], (k, v, keys))  # noqa: B023
        outs.append(attend(own[0], *seen[:2], own[1], seen[2]))
    return jnp.concatenate(outs, axis=1)


def _in_blocks(q, k, v, queries: Places, keys: Places, *, window, kept):
    block = functools.partial(_attend_block, window=window)
    length = q.shape[1]
    if length <= QUERY_BLOCK:
        return (block if kept else jax.checkpoint(block))(q, k, v, queries, keys)
    split = functools.partial(_split_queries, blocks=-(-length // QUERY_BLOCK))
    out = jax.lax.map(lambda xs: jax.checkpoint(block)(xs[0], k, v, xs[1], keys), jax.tree.map(split, (q, queries)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :length]


def _split_queries(x: Array, blocks: int) -> Array:
    """[B, T, ...] -> [blocks, B, QUERY_BLOCK, ...]; the last block is filled up with zeros (segment 0)."""
    x = _fill(x, blocks * QUERY_BLOCK)
    return jnp.moveaxis(x.reshape(x.shape[0], blocks, QUERY_BLOCK, *x.shape[2:]), 1, 0)


def _fill(x: Array, length: int) -> Array:
    """[B, T, ...] -> [B, length, ...], with zeros at the end."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def _attend_block(q, k, v, queries: Places, keys: Places, *, window):
    groups = q.shape[2] // k.shape[2]
    # by head first, and the mask as a sum: XLA's CPU backend then computes products and softmax as one kernel; the
    # usual order would have it transpose all scores, and a selection write and read them again (docs/measured.md)
    q = jnp.moveaxis(q.reshape(*q.shape[:2], k.shape[2], groups, q.shape[3]), 1, 3)
    scores = _scores(q, k) / math.sqrt(q.shape[-1])
    # finite, so that the softmax of a padding query, which sees nothing, has no NaN; a score is nothing beside it
    unseen = jax.lax.optimization_barrier(jnp.where(visible(queries, keys, window), 0.0, -1e30))
    scores = scores + unseen[:, None, None]
    out = jnp.einsum("bkgts,bskh->bkgth", _softmax(jnp.dtype(v.dtype), scores), v)
    return jnp.moveaxis(out, 3, 1).reshape(out.shape[0], out.shape[3], -1, out.shape[-1])


@jax.custom_vjp
def _scores(q, k):
    """q k^T, in float32: [B, K, G, T, S] of queries [B, K, G, T, H] and keys [B, S, K, H]."""
    return jnp.einsum("bkgth,bskh->bkgts", q, k, preferred_element_type=jnp.float32)


def _to_q_and_k(operands, cotangent):
    """The scores' cotangent is rounded to the operands' dtype, as flash attention's kernels do."""
    q, k = operands
    cotangent = cotangent.astype(q.dtype)
    return jnp.einsum("bkgts,bskh->bkgth", cotangent, k), jnp.einsum("bkgts,bkgth->bskh", cotangent, q)


_scores.defvjp(lambda q, k: (_scores(q, k), (q, k)), _to_q_and_k)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(dtype, scores):
    """softmax of float32 scores, in `dtype`. The backward pass has the result alone, as it was rounded; left to JAX,
    it would keep a float32 copy, too, which is most of what attention keeps."""
    return jax.nn.softmax(scores, axis=-1).astype(dtype)


def _keep_weights(dtype, scores):
    weights = _softmax(dtype, scores)
    return weights, weights


def _to_scores(dtype, weights, cotangent):
    """w (c - sum w c)"""
    weights = weights.astype(jnp.float32)
    each = weights * cotangent.astype(jnp.float32)
    return (each - weights * jnp.sum(each, axis=-1, keepdims=True),)


_softmax.defvjp(_keep_weights, _to_scores)


def cudnn_attention(q, k, v, queries: Places, keys: Places, window, layout: Layout | None = None):
    """cuDNN's flash attention (NVIDIA), through jax.nn. No array is [T, T]: of rows of one segment it is told how long
    they are, and of others it has masks of MASKED_QUERIES queries. (Its packed layout would need neither, but holds
    statistics [B, M, N, T] of M segments, and JAX 0.12 drops its offsets under vmap.)"""
    kernel = _cudnn_by_length
    if queries.lengths is None:
        kernel = functools.partial(_cudnn_masked, for_each_head=layout is not None and layout.mapped(*COPIES))
    return _on_shards(layout, functools.partial(kernel, window=window), q, k, v, queries)


def _cudnn_by_length(q, k, v, places: Places, *, window):
    """What it gives for padding is not promised to be finite: zeros take its place, forward and backward."""
    if places.starts is not None:
        q, k, v = (_moved(x, -places.starts) for x in (q, k, v))
    real = (jnp.arange(q.shape[1]) < places.lengths[:, None])[:, :, None, None]
    q, k, v = (jnp.where(real, x, 0) for x in (q, k, v))
    lengths = jnp.maximum(places.lengths, 1)  # no row sees nothing
    out = jax.nn.dot_product_attention(
        q, k, v, is_causal=True, query_seq_lengths=lengths, key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0), implementation="cudnn")
    out = jnp.where(real, out, 0)
    return out if places.starts is None else _moved(out, places.starts)


def _moved(x, columns):
    """[B, T, ...], each row as many columns to the right, and what falls off at its left end."""
    return jax.vmap(lambda row, columns: jnp.roll(row, columns, axis=0))(x, columns)


def _cudnn_masked(q, k, v, places: Places, *, window, for_each_head: bool):
    """Masks are made again in the backward pass, not kept. All heads share them, but not under jax.vmap, where JAX 0.12
    takes only masks that each head has for itself."""
    @functools.partial(jax.checkpoint, policy=attention_saveable, static_argnums=0)
    def block(start: int, q, k, v, places: Places):
        stop = min(start + MASKED_QUERIES, q.shape[1])
        first = 0 if window is None else max(0, start + 1 - window) // 8 * 8  # what cuDNN wants aligned
        queries, keys = _columns(places, start, stop), _columns(places, first, stop)
        # padding attends to padding: it has no empty softmax, and no say in the gradients of real tokens
        padding = (queries.segment_ids == 0)[:, :, None] & (keys.segment_ids == 0)[:, None, :]
        mask = (visible(queries, keys, window) | padding)[:, None]
        mask = jnp.repeat(mask, q.shape[2], axis=1) if for_each_head else mask
        # is_causal takes nothing from a real query, but lets cuDNN skip the blocks above the diagonal
        return jax.nn.dot_product_attention(q[:, start:stop], k[:, first:stop], v[:, first:stop], mask=mask,
                                            is_causal=start == 0, implementation="cudnn")

    return jnp.concatenate([block(start, q, k, v, places) for start in range(0, q.shape[1], MASKED_QUERIES)], axis=1)


def _columns(places: Places, start: int, stop: int) -> Places:
    return jax.tree.map(lambda x: x[:, start:stop], places)


def flash_attention(q, k, v, queries: Places, keys: Places, window, layout: Layout | None = None):
    """JAX's Pallas splash attention (TPU). Padding attends to padding."""
    return _on_shards(layout, functools.partial(_splash, window=window), q, k, v, queries)


def _on_shards(layout: Layout | None, kernel, q, k, v, places: Places):
    """kernel(q, k, v, places), on every device for its own rows and heads; the compiler cannot split a kernel.

    With more devices than kv heads, k and v are repeated so that each device has the one that its queries need.
    Rows or heads that do not divide are computed on every device.
    """
    if layout is None:
        return kernel(q, k, v, places)
    rows, heads = layout.entries(("batch", "kv_heads"))
    rows = rows if q.shape[0] % layout.size(rows) == 0 else None
    kv_heads = math.lcm(k.shape[2], layout.size(heads))
    if q.shape[2] % kv_heads == 0:
        k, v = (jnp.repeat(x, kv_heads // x.shape[2], axis=2) for x in (k, v))
    else:
        heads = None
    wide, narrow = PartitionSpec(rows, None, heads, None), PartitionSpec(rows)
    return on_each(layout, kernel, (wide, wide, wide, narrow), wide)(q, k, v, places)


def _splash(q, k, v, places: Places, *, window):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    (batch, length, heads, head_dim), kv_heads = q.shape, k.shape[2]
    blocks = -(-length // min(FLASH_BLOCK, FLASH_BYTES // (head_dim * q.dtype.itemsize) // LANES * LANES))
    block = -(-length // (blocks * LANES)) * LANES  # blocks of even size, so that little is filled up
    q, k, v, segment_ids = (_fill(x, blocks * block) for x in (q, k, v, places.segment_ids))
    q = q.reshape(batch, -1, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4) / math.sqrt(head_dim)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    kernel = _splash_kernel(blocks, block, heads // kv_heads, window)
    out = kernel(q, k, v, splash.SegmentIds(segment_ids, segment_ids))
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, -1, heads, head_dim)[:, :length]


def _splash_kernel(blocks: int, block: int, groups: int, window: int | None):
    """A function of q [B, K, G, T, H], k and v [B, K, T, H] and segment ids [B, T], T = blocks * block."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (blocks * block, blocks * block)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    kernel = splash.make_splash_mqa_single_device(masks.MultiHeadMask([mask] * groups),
                                                  block_sizes=_block_sizes(blocks, block, window),
                                                  residual_checkpoint_name=ATTENTION)
    kernel = jax.vmap(kernel, in_axes=(0, 0, 0, None))  # over kv heads
    return jax.vmap(kernel)  # over rows


def _block_sizes(blocks: int, block: int, window: int | None):
    """One kernel for the whole backward pass computes scores once, not twice: 29 % fewer cycles in the compiler's own
    schedule (docs/measured.md). But it goes through the blocks outside a window, too."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    fused = window is None and blocks <= FUSED_BLOCKS
    of_queries = {} if fused else {"block_q_dq": block, "block_kv_dq": block}
    return splash.BlockSizes(*[block] * 6, **of_queries, use_fused_bwd_kernel=fused)
