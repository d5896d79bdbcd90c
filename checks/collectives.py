"""What the links between devices carry: all-gather, reduce-scatter and all-reduce over all of them, and over each half.

Bytes are those that one device sends in a ring (sharding/collectives.py): (n - 1) / n of the array, of an all-reduce
twice that. Each collective is checked, too: what it gives is what numpy makes of the same numbers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from checks.hardware import seconds_of
from checks.machine import Machine
from checks.verdicts import Check, Finding, not_here
from sharding.collectives import SHARES
from sharding.mesh import make_mesh
from sharding.settings import MeshConfig

PART = "links"
ROUNDS = 10


def checks(machine: Machine) -> list[Check]:
    if machine.count == 1:
        return [Check(PART, "collectives", not_here("there is one device"))]
    return [Check(PART, f"{kind}, mesh axis {axis} of {_shown(sizes)}",
                  functools.partial(measure, machine, kind, axis, sizes))
            for axis, sizes in meshes(machine.count) for kind in ("all-gather", "reduce-scatter", "all-reduce")]


def meshes(count: int) -> list[tuple[str, tuple[tuple[str, int], ...]]]:
    """(axis, mesh): all devices along one axis; two ways along each of two, where there are so many."""
    whole = [("fsdp", (("data", 1), ("fsdp", count)))]
    if count % 2 or count == 2:
        return whole
    halves = (("data", 1), ("fsdp", count // 2), ("tensor", 2))
    return [*whole, ("fsdp", halves), ("tensor", halves)]


def _shown(sizes: tuple[tuple[str, int], ...]) -> str:
    return " ".join(f"{name} {size}" for name, size in sizes if size > 1)


def collective(kind: str, axis: str, x: Any) -> Any:
    """On a device, of its [n, m]: an all-gather of m / n of a row each, or a sum over devices."""
    if kind == "all-gather":
        return jax.lax.all_gather(x[: len(x) // jax.lax.axis_size(axis)], axis, tiled=True)
    if kind == "reduce-scatter":
        return jax.lax.psum_scatter(x, axis, tiled=True)
    return jax.lax.psum(x, axis)


def measure(machine: Machine, kind: str, axis: str, sizes: tuple[tuple[str, int], ...]) -> Finding:
    mesh = make_mesh(MeshConfig(**dict(sizes)))
    n = mesh.shape[axis]
    length = (2**16 if machine.quick else 2**26) // n * n
    wrong = check(mesh, kind, axis)
    mapped = functools.partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(axis), PartitionSpec()),
                               out_specs=PartitionSpec(axis), check_vma=False)

    def again(x: Any, count: Any) -> Any:
        def once(_: Any, x: Any) -> Any:
            found = collective(kind, axis, x)
            return found if found.shape == x.shape else jnp.tile(found, n)

        return jax.lax.fori_loop(0, count, once, x)

    seconds = seconds_of(mapped(again), jnp.zeros((n * length,), jnp.float32), jnp.int32(ROUNDS)) / ROUNDS
    rate = SHARES[kind] * (n - 1) / n * 4 * length / seconds / 1e9
    note = f"{rate:,.1f} GB/s that a device sends, {4 * length / 2**20:,.0f} MiB each"
    return Finding("wrong" if wrong else "ok", wrong or note, {"GB/s": rate})


def check(mesh: Any, kind: str, axis: str) -> str:
    """What is wrong with the result, or nothing."""
    n = mesh.shape[axis]
    numbers = np.arange(n * 2 * n, dtype=np.float32).reshape(n, 2 * n)
    found = jax.jit(jax.shard_map(functools.partial(collective, kind, axis), mesh=mesh, in_specs=PartitionSpec(axis),
                                  out_specs=PartitionSpec(axis), check_vma=False))(jnp.asarray(numbers.ravel()))
    expected = {"all-gather": np.tile(numbers[:, :2].ravel(), n), "reduce-scatter": numbers.sum(0),
                "all-reduce": np.tile(numbers.sum(0), n)}[kind]
    same = np.array_equal(np.asarray(found), expected)
    return "" if same else f"the sum over {n} devices is another than numpy's"
