"""Scaled dot-product attention behind one function, `attend`, that picks the kernel.

Every kernel computes softmax(q k^T / sqrt(H)) v over the keys that a query may see: those of its own segment
(equal non-zero `segment_ids`), not after it (`positions`), and fewer than `window` back. A new kernel is one function
with `attend`'s arguments and a line in `attend`; no model changes.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from errors import InputError
from models.remat import ATTENTION
from sharding.layout import Layout, on_each

QUERY_BLOCK = 512
"""queries whose scores the xla kernel holds at a time"""

KEPT_SCORES = 2**23
"""scores of a layer (32 MiB in float32) up to which the xla kernel keeps them for the backward pass"""

FLASH_BLOCK = 512
"""queries, and keys, that the flash kernel holds at a time, at most; a multiple of LANES"""

PAGES_AT_A_TIME = 4
"""pages of a row that the paged kernel holds at a time, at most"""

QUERIES = ("batch", None, "kv_heads")
PAGES = ("batch", "kv_heads", None, None, "head_dim")
ROWS = ("batch",)
"""axes of queries [B, T, N, H]; of keys, or values, in the cache [D, K, P, S, H]; of what a row has"""

LANES = 128
"""what the TPU's registers hold side by side: blocks are multiples of it"""


class SharedPrompt(NamedTuple):
    """A row of T = prompt + completions * C positions: a prompt, then completions that each see it and themselves."""

    prompt: int
    """positions of the prompt"""
    completions: int


@flax.struct.dataclass
class Places:
    """Where the tokens of queries (or keys) stand, [B, T]; blocks of them are mapped over."""

    positions: Int[Array, "... T"]
    segment_ids: Int[Array, "... T"]
    shared: SharedPrompt | None = flax.struct.field(default=None, pytree_node=False)
    table: Int[Array, "B M"] | None = None
    """when decoding: the pages of the cache where positions [0, M * page) of a row lie"""


def attend(q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], queries: Places,
           keys: Places, window: int | None, implementation: str, layout: Layout | None) -> Float[Array, "B T N H"]:
    """Attention with N query heads in K groups; a padding query (segment 0) gets finite values of no meaning.

    `implementation`: "xla" anywhere; "cudnn" on NVIDIA; "flash" on TPU; "auto" picks by platform. Cudnn and flash
    serve whole rows, whose positions count up by 1 along each segment; T != S takes xla. Where `queries.shared` says
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
    """Each completion as a row of its own behind its prompt; the xla kernel has the prompt's queries once."""
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
        out = attend(whole(q), keys, values, rows, rows, window, implementation, layout)
        first, rest = out[::count, :prompt_length], out[:, prompt_length:]
    return jnp.concatenate([first, rest.reshape(len(q), -1, *rest.shape[2:])], axis=1)


def write_to_pages(pages: Float[Array, "D K P S H"], new: Float[Array, "B T K H"], table: Int[Array, "B M"],
                   positions: Int[Array, "B T"], implementation: str,
                   layout: Layout | None) -> Float[Array, "D K P S H"]:
    """Puts keys or values where the table says that their positions lie; those at position -1 go nowhere.

    A page holds S positions. Rows come in D equal shares, each with P pages of its own, so that a device of a mesh
    holds the pages of its rows alone. For the TPU one position a row is written row by row: XLA's scatter would move
    all pages through the chip's memory.
    """
    if new.shape[1] == 1 and _for_tpu(implementation):
        arrays = [(new, QUERIES), (pages, PAGES), (table, ROWS), (positions, ROWS)]
        return _on_shares(layout, _write_rows, pages, arrays, PAGES)
    shares, kv_heads, count, size, head_dim = pages.shape
    where = jnp.take_along_axis(table, jnp.maximum(positions, 0) // size, axis=1) * size + positions % size
    where = jnp.where(positions < 0, count * size, where)  # one past the end: dropped

    def write(held: Array, new: Array, where: Array) -> Array:  # [P S, H], [b T, H], [b T]
        return held.at[where].set(new, mode="drop")

    new = jnp.moveaxis(_in_shares(new.astype(pages.dtype), shares), 3, 1).reshape(shares, kv_heads, -1, head_dim)
    held = pages.reshape(shares, kv_heads, -1, head_dim)
    # places for each head: of one place for all heads, XLA makes pages lie otherwise than the TPU's kernel reads them
    where = jnp.broadcast_to(where.reshape(shares, 1, -1), new.shape[:3])
    return jax.vmap(jax.vmap(write))(held, new, where).reshape(pages.shape)


def attend_to_pages(q: Float[Array, "B T N H"], keys: Float[Array, "D K P S H"], values: Float[Array, "D K P S H"],
                    places: Places, window: int | None, implementation: str,
                    layout: Layout | None) -> Float[Array, "B T N H"]:
    """Attention of T queries a row to the positions of its own context, up to theirs, that lie in pages.

    Costs what the contexts are long, not what they may become. `implementation`, as attend's: "flash" is JAX's Pallas
    kernel (TPU), for one query a row without a window; "auto" takes it where it can; anything else is plain XLA.
    """
    if _paged_kernel_takes(q, keys, window) and _for_tpu(implementation):
        arrays = [(q, QUERIES), (keys, PAGES), (values, PAGES), (places.table, ROWS), (places.positions, ROWS)]
        return _on_shares(layout, _paged_kernel, keys, arrays, QUERIES)
    return xla_paged_attention(q, keys, values, places, window)


def xla_paged_attention(q, keys, values, places: Places, window):
    """Goes from page to page up to the last one that any row has come to: once for the softmax's denominator, with a
    running maximum (Milakov & Gimelshein 2018, arXiv:1805.02867), and once for the values. So weights are rounded where
    the trainer rounds them, normalised. Scores are kept in between for one query a row, and computed again for many.
    """
    (shares, kv_heads, _, size, head_dim), (batch, length, heads, _) = keys.shape, q.shape
    table, positions = (_in_shares(each, shares) for each in (places.table, places.positions))
    groups = heads // kv_heads
    q = q.reshape(shares, -1, length, kv_heads, groups, head_dim).transpose(0, 1, 3, 2, 4, 5)
    q = q.reshape(shares, -1, kv_heads, length * groups, head_dim)
    reach = jnp.repeat(positions, groups, axis=-1)[:, :, None, :, None]  # [D, b, 1, T * G, 1]

    def page(pages: Array, number: Array) -> Array:  # [D, b, K, S, H]
        at = jax.lax.dynamic_index_in_dim(table, number, 2, keepdims=False)
        return jax.vmap(lambda held, at: jnp.moveaxis(held.at[:, at].get(mode="clip"), 0, 1))(pages, at)

    def score(number: Array) -> Array:  # [D, b, K, T * G, S]
        scores = jnp.einsum("dbkqh,dbksh->dbkqs", q, page(keys, number), preferred_element_type=jnp.float32)
        distance = reach - (number * size + jnp.arange(size))
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return jnp.where(seen, scores / math.sqrt(head_dim), -1e30)

    def count(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        high, total, kept = carry
        scores = score(number)
        higher = jnp.maximum(high, jnp.max(scores, axis=-1))
        total = total * jnp.exp(high - higher) + jnp.sum(jnp.exp(scores - higher[..., None]), axis=-1)
        keep = jax.lax.dynamic_update_index_in_dim(kept, scores, number, 0) if length == 1 else kept
        return higher, total, keep

    def add(number: Array, out: Array) -> Array:
        scores = jax.lax.dynamic_index_in_dim(kept, number, 0, keepdims=False) if length == 1 else score(number)
        weights = jnp.exp(scores - high[..., None]) / total[..., None]
        return out + jnp.einsum("dbkqs,dbksh->dbkqh", weights.astype(values.dtype), page(values, number),
                                preferred_element_type=jnp.float32)

    start, stop = _pages_in_reach(positions, size, window)
    shape = q.shape[:-1]
    high, total, kept = jax.lax.fori_loop(start, stop, count, (
        jnp.full(shape, -1e30), jnp.zeros(shape), jnp.zeros((table.shape[-1] if length == 1 else 0, *shape, size))))
    total = jnp.maximum(total, 1e-30)
    out = jax.lax.fori_loop(start, stop, add, jnp.zeros(q.shape)).astype(values.dtype)
    out = out.reshape(shares, -1, kv_heads, length, groups, head_dim).transpose(0, 1, 3, 2, 4, 5)
    return out.reshape(batch, length, heads, head_dim)


def _paged_kernel_takes(q: Array, keys: Array, window: int | None) -> bool:
    """It computes in bfloat16 whatever it is given, so that is all that it gets."""
    return q.shape[1] == 1 and window is None and q.shape[3] % LANES == 0 and keys.dtype == jnp.bfloat16


def _for_tpu(implementation: str) -> bool:
    return implementation == "flash" or implementation == "auto" and jax.default_backend() == "tpu"


def _on_shares(layout: Layout | None, function: Any, pages: Array, arrays: Sequence[tuple[Array, Any]],
               out: Any) -> Array:
    """function(*arrays), on every device for its own shares and heads, given the axes of each array; heads that do not
    divide are computed everywhere."""
    if layout is None:
        return function(*(array for array, _ in arrays))
    whole = pages.shape[1] % layout.ways("kv_heads") != 0

    def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
        return layout.spec(*(None if name == "kv_heads" and whole else name for name in axes))

    return on_each(layout, function, tuple(spec(axes) for _, axes in arrays), spec(out))(*(each for each, _ in arrays))


def _write_rows(new: Array, pages: Array, table: Array, positions: Array) -> Array:
    """One position a row."""
    of_share, size = len(new) // len(pages), pages.shape[3]
    position = jnp.maximum(positions[:, 0], 0)
    page = jnp.take_along_axis(table, position[:, None] // size, axis=1)[:, 0]
    new = new.astype(pages.dtype)[:, 0, :, None, None]  # [B, K, 1, 1, H]

    def write(row: Array, held: Array) -> Array:
        at = (row // of_share, 0, page[row], position[row] % size, 0)
        old = jax.lax.dynamic_slice(held, at, (1, *new.shape[1:]))
        mine = jax.lax.dynamic_index_in_dim(new, row, 0)
        return jax.lax.dynamic_update_slice(held, jnp.where(positions[row, 0] < 0, old, mine), at)

    return jax.lax.fori_loop(0, len(new), write, pages)


def _paged_kernel(q: Array, keys: Array, values: Array, table: Array, positions: Array) -> Array:
    """A row at position -1 gets finite values of no meaning."""
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    shares = len(keys)
    q = _in_shares((q[:, 0] / math.sqrt(q.shape[-1])).astype(q.dtype), shares)
    lengths = _in_shares(jnp.maximum(positions[:, 0] + 1, 1), shares)
    block = math.gcd(table.shape[1], PAGES_AT_A_TIME)
    out = [paged_attention(*each, pages_per_compute_block=block)
           for each in zip(q, keys, values, lengths, _in_shares(table, shares), strict=True)]
    return jnp.concatenate(out)[:, None].astype(values.dtype)


def _pages_in_reach(positions: Int[Array, "D b T"], size: int, window: int | None) -> tuple[Any, Array]:
    """The first and one past the last page that any query sees."""
    stop = jnp.max(positions) // size + 1
    if window is None:
        return 0, stop
    first = jnp.min(positions, where=positions >= 0, initial=jnp.iinfo(jnp.int32).max)
    return jnp.maximum(first - window + 1, 0) // size, stop


def _in_shares(x: Array, shares: int) -> Array:
    return x.reshape(shares, -1, *x.shape[1:])


def _choose_kernel(implementation: str, q: jax.Array, k: jax.Array) -> str:
    if implementation not in ("auto", "xla", "cudnn", "flash"):
        raise InputError(f"unknown attention {implementation!r}; there are auto, xla, cudnn, flash")
    if q.shape[1] != k.shape[1] or q.shape[1] == 1:
        return "xla"
    if implementation == "cudnn" and not _cudnn_takes(q):
        raise InputError(f"attention 'cudnn' takes bfloat16 or float16, an even number of positions, and a head_dim "
                         f"of at most 128 that is a multiple of 8; not {q.dtype}, {q.shape[1]} and {q.shape[3]}: "
                         f"choose 'auto' or 'xla'")
    return implementation if implementation != "auto" else _fastest(q)


def _fastest(q: jax.Array) -> str:
    backend = jax.default_backend()
    if backend == "tpu" and q.shape[1] >= LANES:
        return "flash"
    if backend == "gpu" and _cudnn_takes(q) and _is_ampere(jax.local_devices()[0].compute_capability):
        return "cudnn"
    return "xla"


def _cudnn_takes(q: jax.Array) -> bool:
    """What cuDNN's attention with a mask asks of its inputs, in the backward pass too."""
    return (q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[1] % 2 == 0
            and q.shape[3] % 8 == 0 and q.shape[3] <= 128)


def _is_ampere(compute_capability: str) -> bool:
    """From NVIDIA's "8.0" on; AMD's GPUs call theirs "gfx942" and the like."""
    major = compute_capability.split(".")[0]
    return major.isdigit() and int(major) >= 8


def visible(queries: Places, keys: Places, window: int | None) -> Bool[Array, "B T S"]:
    """True where query t may see key s."""
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    segments = keys.segment_ids[:, None, :]
    same = (queries.segment_ids[:, :, None] == segments) & (segments != 0)
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return same & near


def xla_attention(q, k, v, queries: Places, keys: Places, window, layout: Layout | None = None):
    """Plain XLA, the scores of QUERY_BLOCK queries at a time. Those of a small batch are kept for the backward pass,
    more than KEPT_SCORES of them recomputed there."""
    return checkpoint_name(_in_blocks(q, k, v, queries, keys, window), ATTENTION)


def _in_blocks(q, k, v, queries: Places, keys: Places, window):
    block = functools.partial(_attend_block, window=window)
    length = q.shape[1]
    if length <= QUERY_BLOCK:
        small = q.shape[0] * length * q.shape[2] * k.shape[1] <= KEPT_SCORES
        return (block if small else jax.checkpoint(block))(q, k, v, queries, keys)
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
    q = q.reshape(*q.shape[:2], k.shape[2], groups, q.shape[3])
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q.shape[-1])
    # finite, so that the softmax of a padding query, which sees nothing, has no NaN
    scores = jnp.where(visible(queries, keys, window)[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v)
    return out.reshape(*out.shape[:2], -1, out.shape[-1])


def cudnn_attention(q, k, v, queries: Places, keys: Places, window, layout: Layout | None = None):
    """cuDNN's flash attention (NVIDIA), through jax.nn; see _cudnn_takes. Its mask is a [B, 1, T, T] array."""
    return _on_shards(layout, functools.partial(_cudnn, window=window), q, k, v, queries)


def _cudnn(q, k, v, places: Places, *, window):
    padding = places.segment_ids == 0
    # padding attends to padding: it has no empty softmax, and no say in the gradients of real tokens
    mask = visible(places, places, window) | (padding[:, :, None] & padding[:, None, :])
    # is_causal takes nothing from a real query, but lets cuDNN skip the blocks above the diagonal
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], is_causal=True, implementation="cudnn")


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
    wide, narrow = PartitionSpec(rows, None, heads, None), PartitionSpec(rows, None)
    return on_each(layout, kernel, (wide, wide, wide, narrow), wide)(q, k, v, places)


def _splash(q, k, v, places: Places, *, window):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    (batch, length, heads, head_dim), kv_heads = q.shape, k.shape[2]
    blocks = -(-length // FLASH_BLOCK)
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
                                                  block_sizes=splash.BlockSizes(*[block] * 8),
                                                  residual_checkpoint_name=ATTENTION)
    kernel = jax.vmap(kernel, in_axes=(0, 0, 0, None))  # over kv heads
    return jax.vmap(kernel)  # over rows
