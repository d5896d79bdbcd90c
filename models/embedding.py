"""The embedding's lookup. Where its features lie in parts, each device looks up the tokens of all devices that hold the
other parts, in its own, and they exchange what they found: never the table, and no row but those that each has.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from sharding.layout import Layout, names_of, on_each


class Split(NamedTuple):
    """Mesh axes over which rows, the vocabulary and the features are split."""

    rows: tuple[str, ...]
    vocab: tuple[str, ...]
    embed: tuple[str, ...]


def look_up(table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: Any,
            layout: Layout | None = None) -> Float[Array, "B T D"]:
    """table[tokens[b, t]], rounded to `dtype`, as float32. The table's gradient adds up in float32."""
    if layout is None or layout.mesh.size == 1:
        return jnp.take(table, tokens, axis=0).astype(dtype).astype(jnp.float32)
    return _look_up(jnp.dtype(dtype), layout, table, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _look_up(dtype: Any, layout: Layout, table: Array, tokens: Array) -> Array:
    split, (of_table, of_tokens, of_rows) = _specs(layout, tokens)
    return on_each(layout, functools.partial(_forward, split, dtype), (of_table, of_tokens), of_rows)(table, tokens)


def _keep(dtype: Any, layout: Layout, table: Array, tokens: Array) -> tuple[Array, Any]:
    return _look_up(dtype, layout, table, tokens), (tokens, table)  # of the table, its shape alone is read


def _give_back(dtype: Any, layout: Layout, saved: Any, cotangent: Array) -> tuple[Array, None]:
    tokens, table = saved
    split, (of_table, of_tokens, of_rows) = _specs(layout, tokens)
    shape = jax.sharding.NamedSharding(layout.mesh, of_table).shard_shape(table.shape)
    back = functools.partial(_backward, split, shape)
    return on_each(layout, back, (of_tokens, of_rows), of_table)(tokens, cotangent).astype(table.dtype), None


_look_up.defvjp(_keep, _give_back)


def _specs(layout: Layout, tokens: Array) -> tuple[Split, Any]:
    """How the table, tokens [B, T] and rows [B, T, D] lie; rows that do not divide are looked up everywhere."""
    (batch,), (vocab, embed) = layout.entries(("batch",)), layout.entries(("vocab", "embed"))
    batch = batch if tokens.shape[0] % layout.size(batch) == 0 else None
    return Split(*map(names_of, (batch, vocab, embed))), (
        PartitionSpec(vocab, embed), PartitionSpec(batch, None), PartitionSpec(batch, None, None))


def _forward(split: Split, dtype: Any, table: Array, tokens: Array) -> Array:
    at, here = _in_part(split, table.shape[0], _all_tokens(split, tokens))
    found = jnp.where(here[..., None], jnp.take(table, at, axis=0, mode="clip").astype(dtype), 0)
    found = jax.lax.psum(found, split.vocab) if split.vocab else found  # one of them has it, the others add 0
    for name in reversed(split.embed):
        if name in split.rows:
            found = jax.lax.all_to_all(found, name, split_axis=0, concat_axis=2, tiled=True)
        else:
            found = jax.lax.all_gather(found, name, axis=2, tiled=True)
    return found.astype(jnp.float32)


def _backward(split: Split, shape: tuple[int, ...], tokens: Array, cotangent: Array) -> Array:
    at, here = _in_part(split, shape[0], _all_tokens(split, tokens))
    for name in split.embed:
        if name in split.rows:
            cotangent = jax.lax.all_to_all(cotangent, name, split_axis=2, concat_axis=0, tiled=True)
        else:
            own = cotangent.shape[2] // jax.lax.axis_size(name)
            cotangent = jax.lax.dynamic_slice_in_dim(cotangent, jax.lax.axis_index(name) * own, own, 2)
    at = jnp.where(here, at, shape[0])  # one past the end: dropped
    gradient = jnp.zeros(shape, jnp.float32).at[at].add(cotangent, mode="drop")
    rest = tuple(name for name in split.rows if name not in split.embed)
    return jax.lax.psum(gradient, rest) if rest else gradient


def _all_tokens(split: Split, tokens: Array) -> Array:
    """Of all devices that hold other features for other rows; those along the fastest axis furthest apart."""
    for name in split.embed:
        tokens = jax.lax.all_gather(tokens, name, axis=0, tiled=True) if name in split.rows else tokens
    return tokens


def _in_part(split: Split, size: int, tokens: Array) -> tuple[Array, Array]:
    """Where tokens stand in the device's part of the vocabulary, and whether they do."""
    at = tokens - (jax.lax.axis_index(split.vocab) * size if split.vocab else 0)
    return at, (at >= 0) & (at < size)
