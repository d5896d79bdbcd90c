"""The one table from logical axis to mesh axis, and what follows from it.

Every array names its dimensions by logical axes ("embed", "heads", ...). Changing how a model is laid out is a
change of RULES or of the mesh, never of the model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from errors import InputError

MeshAxes = str | tuple[str, ...] | None

RULES: dict[str, MeshAxes] = {
    # what flows
    "batch": ("data", "fsdp"),
    "length": None,
    "features": None,  # the residual stream: its rows are split already, over data and fsdp
    # what is learnt; "heads" and "kv_heads" are the flat N*H and K*H of a kernel, or the heads of an activation
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "rank": None,
    "head_dim": None,
    "layers": None,
}

LARGE = 2**22
"""elements from which a parameter may not be replicated on a mesh that could split it; LoRA's thin ones may"""


MAY_REPLICATE: set[Any] = set()
"""meshes of runs that were told --mesh.allow-replicated"""


def check_rules(rules: Mapping[str, Any], axes: Sequence[str]) -> None:
    """Raises InputError for a line of the table that gives anything but axes of the mesh, each once, or None."""
    for logical, entry in rules.items():
        names = names_of(entry) if isinstance(entry, str | tuple | None) else (entry,)
        if not all(name in axes and names.count(name) == 1 for name in names):
            raise InputError(f"RULES in sharding/rules.py maps {logical!r} to {entry!r}; give None, one of the mesh's "
                             f"axes ({', '.join(axes)}), or a tuple of several, each once")


def mesh_axes(axes: Sequence[str | None], rules: Mapping[str, MeshAxes] = RULES) -> tuple[MeshAxes, ...]:
    """Mesh axis (or axes) of each logical axis. Raises InputError for an unknown axis or a collision."""
    unknown = [axis for axis in axes if axis is not None and axis not in rules]
    if unknown:
        raise InputError(f"unknown logical axis {unknown[0]!r}: add it to RULES in sharding/rules.py "
                         f"(known: {', '.join(rules)})")
    found = tuple(None if axis is None else rules[axis] for axis in axes)
    used = [name for entry in found for name in names_of(entry)]
    if len(set(used)) < len(used):
        raise InputError(f"logical axes {tuple(axes)} collide: two of them map to the same mesh axis ({used}); "
                         f"change RULES in sharding/rules.py")
    return found


def names_of(entry: MeshAxes) -> tuple[str, ...]:
    """The mesh axes of one entry of a partition spec, as a tuple."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def ways(entry: MeshAxes, mesh: Any) -> int:
    """Into how many pieces a dimension is split."""
    return math.prod(mesh.shape[name] for name in names_of(entry))


def param_spec(name: str, shape: Sequence[int], axes: Sequence[str | None], mesh: Any) -> PartitionSpec:
    """Partition spec of a parameter; strict.

    Raises InputError, naming the array, the axis and the fix, where a size does not divide or where a large array
    would be replicated on a mesh that could split it.
    """
    entries = mesh_axes(axes)
    for size, axis, entry in zip(shape, axes, entries, strict=True):
        if size % ways(entry, mesh):
            raise InputError(f"{name}: axis {axis!r} of size {size} does not divide over {ways(entry, mesh)} devices "
                             f"(mesh axis {entry}); change --mesh.{names_of(entry)[0]}")
    pieces = math.prod(ways(entry, mesh) for entry in entries)
    could_split = "rank" not in axes and mesh.shape["fsdp"] * mesh.shape["tensor"] > 1 and mesh not in MAY_REPLICATE
    if pieces == 1 and math.prod(shape) >= LARGE and could_split:
        raise InputError(f"{name} {tuple(shape)} would be replicated on mesh {dict(mesh.shape)}: "
                         f"give one of its axes {tuple(axes)} a mesh axis in RULES in sharding/rules.py, "
                         f"set --mesh.fsdp 1 --mesh.tensor 1, or --mesh.allow-replicated where that is meant")
    return PartitionSpec(*entries)


def path_name(path: Sequence[Any]) -> str:
    """`params/layers/attn/q/kernel` from a jax key path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def tree_shardings(boxed: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shardings of a tree of Linen-boxed arrays or shapes; what has no axis names is replicated."""

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.meta.AxisMetadata):
            return NamedSharding(mesh, PartitionSpec())
        axes, shape = leaf.get_partition_spec(), leaf.unbox(apply_constraint=False).shape
        return NamedSharding(mesh, param_spec(path_name(path), shape, axes, mesh))

    return jax.tree_util.tree_map_with_path(
        sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays an activation over the mesh in force (`jax.set_mesh`); without one, or where a size does not divide
    (9 heads over 2 devices, say), that dimension is left to the compiler."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    entries = [entry if size % ways(entry, mesh) == 0 else PartitionSpec.UNCONSTRAINED
               for size, entry in zip(x.shape, mesh_axes(axes), strict=True)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))
