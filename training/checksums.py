"""Checksums of arrays, computed where they are, and of what JSON holds."""

import functools
import json
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def checksums(tree: Any) -> dict[str, int]:
    """sum over i of bits_i (2 i + 1) modulo 2^32, for every array: any changed bit changes it, its sharding does not.

    Computed where the arrays are, at the speed of their memory; all processes that have parts of them call it.
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    everywhere = jax.sharding.NamedSharding(named[0][1].sharding.mesh, jax.sharding.PartitionSpec())
    sums = jax.device_get(_summing(everywhere)([leaf for _, leaf in named]))
    return {name_of(path): int(value) for (path, _), value in zip(named, sums, strict=True)}


def name_of(path: Any) -> str:
    """Of a leaf of a tree, as in params/embedding."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


@functools.cache
def _summing(everywhere: jax.sharding.Sharding) -> Callable[[list[jax.Array]], jax.Array]:
    return jax.jit(lambda leaves: jnp.stack([_checksum(leaf) for leaf in leaves]), out_shardings=everywhere)


def _checksum(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    strides = [math.prod(array.shape[axis + 1:]) % 2**32 for axis in range(array.ndim)]
    index = sum((jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride)
                 for axis, stride in enumerate(strides)), start=jnp.uint32(0))
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)


def checksum_of_json(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
