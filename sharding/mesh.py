"""The device mesh: how many ways the rows, the weights and the heads are split."""

import math

import jax
from jax.experimental import mesh_utils

from errors import InputError
from sharding.rules import MAY_REPLICATE, RULES, check_rules
from sharding.settings import MeshConfig

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over all devices, with axes `data`, `fsdp`, `tensor`.

    A pod's links are a torus, whose axes may be split where the sizes ask for it: v5p 4x4x4 with tensor=2, say.
    Raises InputError where the sizes do not fit the number of devices, and where RULES name what is no axis.
    """
    devices = jax.devices() if devices is None else devices
    sizes = resolve_sizes({axis: getattr(config, axis) for axis in AXES}, len(devices))
    check_rules(RULES, AXES)
    placed = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    mesh = jax.sharding.Mesh(placed, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))
    if config.allow_replicated:
        MAY_REPLICATE.add(mesh)
    return mesh


def resolve_sizes(sizes: dict[str, int], num_devices: int) -> dict[str, int]:
    """Fills in the axis of size -1 and checks that the product is `num_devices`."""
    requested = " ".join(f"{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"mesh {requested}: sizes are positive, and one at most is -1 (whatever is left)")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if num_devices % fixed or (not free and fixed != num_devices):
        raise InputError(
            f"mesh {requested} does not fit {num_devices} device(s): the product of its sizes must be {num_devices}; "
            f"change --mesh.data, --mesh.fsdp or --mesh.tensor (-1 takes whatever is left)"
        )
    return {axis: num_devices // fixed if size == -1 else size for axis, size in sizes.items()}
