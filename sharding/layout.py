"""The layout: a mesh, and the one table from logical axis to mesh axis. It is passed to whatever lays out an array.

Every array names its dimensions by logical axes ("embed", "heads", ...). Changing how a model lies is a change of a
rule or of the mesh (--mesh.rules, --mesh.fsdp, ...), never of the model.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from errors import InputError, shown

MeshAxes = str | tuple[str, ...] | None

AXES = ("slice", "data", "fsdp", "tensor")
"""of every mesh, the slowest network first"""

COPIES = ("slice", "data")
"""mesh axes along which weights are copied, each copy with rows of its own; their gradients are summed once a step"""

RULES: dict[str, MeshAxes] = {
    # what flows; query and key lengths are those of attention, the residual's is that of all between
    "batch": ("slice", "data", "fsdp"),
    "residual_length": None,
    "query_length": None,
    "key_length": None,
    "features": None,  # the residual stream: its rows are split already
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
"""the table, unless --mesh.rules change a line"""

LARGE = 2**22
"""elements from which a parameter may not be replicated on a mesh that could split it; LoRA's thin ones may"""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays lie. Raises InputError for rules that name what is no axis of the mesh."""

    mesh: Mesh
    rules: tuple[tuple[str, MeshAxes], ...] = tuple(RULES.items())
    """(logical axis, mesh axis or axes), each once; static to the compiler, as the mesh is"""
    allow_replicated: bool = False
    """large weights may lie whole on every device"""
    reduce_dtype: str = "float32"
    """in which gradients of weights are summed over devices"""

    def __post_init__(self) -> None:
        for logical, entry in self.rules:
            names = names_of(entry) if isinstance(entry, str | tuple | None) else (entry,)
            if not all(name in self.mesh.axis_names and names.count(name) == 1 for name in names):
                raise InputError(f"--mesh.rules {logical}={shown_rule(entry)}: give none, one of the mesh's axes "
                                 f"({', '.join(self.mesh.axis_names)}), or several joined by +, each once")

    @functools.cached_property
    def table(self) -> dict[str, MeshAxes]:
        return dict(self.rules)

    def entries(self, axes: Sequence[str | None], array: str = "an activation") -> tuple[MeshAxes, ...]:
        """Mesh axis (or axes) of each logical axis of an array. Raises InputError for an unknown axis or a collision.
        """
        unknown = [axis for axis in axes if axis is not None and axis not in self.table]
        if unknown:
            raise InputError(f"{array}: unknown logical axis {unknown[0]!r}: add it to RULES in sharding/layout.py "
                             f"(known: {', '.join(self.table)})")
        found = tuple(None if axis is None else self.table[axis] for axis in axes)
        used = [name for entry in found for name in names_of(entry)]
        twice = next((name for name in used if used.count(name) > 1), None)
        if twice:
            both = [axis for axis, entry in zip(axes, found, strict=True) if twice in names_of(entry)]
            raise InputError(f"{array}: its logical axes {' and '.join(both)} collide on the mesh axis {twice} (all of "
                             f"it: {', '.join(map(str, axes))}); give one of them another in --mesh.rules")
        return found

    def ways(self, axis: str) -> int:
        """Into how many pieces a logical axis is split."""
        return self.size(self.entries((axis,))[0])

    def size(self, entry: MeshAxes) -> int:
        """Devices along a mesh axis, or several."""
        return math.prod(self.mesh.shape[name] for name in names_of(entry))

    def spec(self, *axes: str | None) -> PartitionSpec:
        return PartitionSpec(*self.entries(axes))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Of an array with these logical axes; without any, whole on every device."""
        return NamedSharding(self.mesh, self.spec(*axes))

    def without(self, *names: str) -> "Layout":
        """The layout of what is mapped over these mesh axes (jax.vmap with them as its spmd_axis_name)."""
        def rest(entry: MeshAxes) -> MeshAxes:
            return tuple(name for name in names_of(entry) if name not in names) or None

        return dataclasses.replace(self, rules=tuple((axis, rest(entry)) for axis, entry in self.rules))

    def mapped(self, *names: str) -> bool:
        """Whether this is a layout `without` these mesh axes, of which there are several devices."""
        return self.size(names) > 1 and not any({*names} & {*names_of(entry)} for _, entry in self.rules)

    def param_spec(self, name: str, shape: Sequence[int], axes: Sequence[str | None]) -> PartitionSpec:
        """Partition spec of a parameter; strict.

        Raises InputError, naming the array, the axis and the fix, where a size does not divide or where a large array
        would be replicated on a mesh that could split it.
        """
        entries = self.entries(axes, name)
        for size, axis, entry in zip(shape, axes, entries, strict=True):
            if size % self.size(entry):
                raise InputError(f"{name}: axis {axis!r} of size {size} does not divide over {self.size(entry)} "
                                 f"devices (mesh axis {shown_rule(entry)}); change --mesh.{names_of(entry)[0]}, or the "
                                 f"axis's line in --mesh.rules")
        pieces = math.prod(self.size(entry) for entry in entries)
        splits = math.prod(size for axis, size in self.mesh.shape.items() if axis not in COPIES)
        if pieces == 1 < splits and math.prod(shape) >= LARGE and "rank" not in axes and not self.allow_replicated:
            raise InputError(f"{name} {tuple(shape)} would be replicated on the mesh {shown(dict(self.mesh.shape))}: "
                             f"give one of its axes ({', '.join(map(str, axes))}) a mesh axis in --mesh.rules, set "
                             f"--mesh.fsdp 1 --mesh.tensor 1, or --mesh.allow-replicated where that is meant")
        return PartitionSpec(*entries)

    def tree_shardings(self, boxed: Any) -> Any:
        """Shardings of a tree of Linen-boxed arrays or shapes; what has no axis names is replicated."""
        def sharding(path: Any, leaf: Any) -> NamedSharding:
            if not isinstance(leaf, nn.meta.AxisMetadata):
                return self.sharding()
            axes, shape = leaf.get_partition_spec(), leaf.unbox(apply_constraint=False).shape
            return NamedSharding(self.mesh, self.param_spec(path_name(path), shape, axes))

        return jax.tree_util.tree_map_with_path(
            sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))


def constrain(layout: Layout | None, x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays an activation out. Without a layout (one device) nothing is; where a size does not divide (9 heads over 2
    devices, say), that dimension is left to the compiler."""
    if layout is None:
        return x
    entries = [entry if size % layout.size(entry) == 0 else PartitionSpec.UNCONSTRAINED
               for size, entry in zip(x.shape, layout.entries(axes), strict=True)]
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*entries)))


def check_layout(model: Any, arrays: Any) -> None:
    """Raises InputError where arrays (or shardings) are of a mesh of several devices, and the model has no layout or
    that of another: the compiler would lay its activations out as it likes, at worst whole on every device."""
    for leaf in jax.tree.leaves(arrays):
        sharding = leaf if isinstance(leaf, jax.sharding.Sharding) else getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
            continue
        if model.layout is None or model.layout.mesh != sharding.mesh:
            own = "no layout" if model.layout is None else f"that of the mesh {shown(dict(model.layout.mesh.shape))}"
            raise InputError(f"the arrays lie on the mesh {shown(dict(sharding.mesh.shape))} and the model has {own}; "
                             f"give it theirs: model.clone(layout=layout)")


def on_each(layout: Layout, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """The function on each device, for what it holds (jax.shard_map): what the compiler cannot split, or not well."""
    return jax.shard_map(function, mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def names_of(entry: MeshAxes) -> tuple[str, ...]:
    """The mesh axes of one entry of a partition spec, as a tuple."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def shown_rule(entry: Any) -> str:
    """As --mesh.rules writes it."""
    return "none" if entry is None else "+".join(map(str, entry)) if isinstance(entry, tuple) else str(entry)


def path_name(path: Sequence[Any]) -> str:
    """`params/layers/attn/q/kernel` from a jax key path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")
