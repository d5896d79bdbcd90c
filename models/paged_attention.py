"""Attention to a cache whose keys and values lie in pages, as decoding needs it, and writing into these."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from models.places import Places
from sharding.layout import Layout, on_each

PAGES_AT_A_TIME = 4
"""pages of a row that the paged kernel holds at a time, at most"""

QUERIES = ("batch", None, "kv_heads")
PAGES = ("batch", "kv_heads", None, None, "head_dim")
ROWS = ("batch",)
"""axes of queries [B, T, N, H]; of keys, or values, in the cache [D, K, P, S, H]; of what a row has"""

LANES = 128
"""what the TPU's registers hold side by side: head_dim is a multiple of it"""


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
