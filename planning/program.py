"""What is planned: a compiled program of a script, over shapes alone, and how often a step of the run calls it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sharding.layout import Layout, path_name


class Program(NamedTuple):
    """One jitted function, and what it is called with."""

    name: str
    function: Callable[..., Any]
    """jitted"""
    arguments: tuple[Any, ...]
    """shapes with shardings, and static arguments as they are"""
    layout: Layout
    model_flops: float = 0.0
    """of a call, over all devices, by the convention of training.throughput"""
    times: float = 1.0
    """calls in a step of the run"""
    tokens: int = 0
    """positions that a call computes"""
    resident: tuple[Any, ...] = ()
    """shapes of what else is on the devices meanwhile"""
    of: int = 1
    """programs that a step of the run has"""


class Held(NamedTuple):
    """An array on the devices."""

    name: str
    shape: str
    bytes: int
    """of the fullest device"""


def held(trees: tuple[Any, ...]) -> list[Held]:
    """The arrays of trees of shapes with shardings, the largest first."""
    leaves = [each for tree in trees for each in jax.tree_util.tree_leaves_with_path(tree)]
    found = [Held(path_name(path), f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]", bytes_of(leaf))
             for path, leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
    return sorted(found, key=lambda each: -each.bytes)


def bytes_of(leaf: jax.ShapeDtypeStruct) -> int:
    """That the fullest device holds; a typed key counts as nothing."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 0
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize
