"""The device mesh: how many ways the rows, the weights and the heads are split."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from errors import InputError
from sharding.layout import AXES, RULES, Layout, MeshAxes
from sharding.settings import MeshConfig

FLAGS = ", ".join(f"--mesh.{axis}" for axis in AXES)


def make_layout(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Layout:
    """The layout over all devices: a mesh with axes `slice`, `data`, `fsdp`, `tensor`, and the rules.

    Raises InputError where the sizes do not fit the devices, and for rules that are none.
    """
    rules = RULES | read_rules(config.rules)
    return Layout(make_mesh(config, devices), tuple(rules.items()), config.allow_replicated, config.reduce_dtype)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh alone.

    A pod's links are a torus, whose axes may be split where the sizes ask for it: v5p 4x4x4 with tensor=2, say. Only
    the axis `slice` goes over the network between slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = slices_of(devices)
    sizes = resolve_sizes({axis: getattr(config, axis) for axis in AXES}, len(devices))
    within = tuple(1 if axis == "slice" else size for axis, size in sizes.items())
    try:
        placed = [mesh_utils.create_device_mesh(within, each, allow_split_physical_axes=True)
                  for each in split_slices(slices, sizes["slice"])]
    except (NotImplementedError, ValueError, AssertionError) as error:  # what it raises for chips that are no torus
        raise InputError(f"mesh {shown_sizes(sizes)} cannot be laid over the links of {len(devices)} "
                         f"{devices[0].device_kind}; choose other sizes for {FLAGS}, or whole slices") from error
    return jax.sharding.Mesh(np.concatenate(placed), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def slices_of(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices of each slice: what a TPU's links join; elsewhere all are one. Raises InputError where slices differ
    in size."""
    if devices[0].platform != "tpu":
        return [list(devices)]
    numbers = sorted({getattr(device, "slice_index", 0) for device in devices})
    slices = [[device for device in devices if getattr(device, "slice_index", 0) == number] for number in numbers]
    if len({len(each) for each in slices}) > 1:
        raise InputError(f"the slices have {', '.join(str(len(each)) for each in slices)} devices; a mesh needs slices "
                         f"of one size: start the run on such")
    return slices


def split_slices(slices: list[list[jax.Device]], count: int) -> list[list[jax.Device]]:
    """`count` slices: as many as TPUs have; elsewhere, and in simulation, processes are divided among them in their
    order, or the devices of the only one. Raises InputError where that cannot be."""
    if len(slices) == count:
        return slices
    if slices[0][0].platform == "tpu":
        raise InputError(f"--mesh.slice {count}: the devices are of {len(slices)} slice(s) with {len(slices[0])} "
                         f"devices each; set --mesh.slice {len(slices)}")
    [devices] = slices
    processes = len({device.process_index for device in devices})
    if processes > 1 and processes % count:
        raise InputError(f"--mesh.slice {count}: the devices are of {processes} processes, which do not divide among "
                         f"as many slices; set --mesh.slice to a divisor of {processes}")
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return [ordered[start : start + len(ordered) // count] for start in range(0, len(ordered), len(ordered) // count)]


def resolve_sizes(sizes: dict[str, int], num_devices: int) -> dict[str, int]:
    """Fills in the axis of size -1 and checks that the product is `num_devices`."""
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"mesh {shown_sizes(sizes)}: sizes are positive, and one at most is -1 (whatever is left)")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if num_devices % fixed or (not free and fixed != num_devices):
        raise InputError(
            f"mesh {shown_sizes(sizes)} does not fit {num_devices} device(s): the product of its sizes must be "
            f"{num_devices}; change {FLAGS} (-1 takes whatever is left)"
        )
    return {axis: num_devices // fixed if size == -1 else size for axis, size in sizes.items()}


def shown_sizes(sizes: dict[str, int]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in sizes.items())


def read_rules(lines: Sequence[str]) -> dict[str, MeshAxes]:
    """{"residual_length": "tensor"} of "residual_length=tensor"; several mesh axes are joined by +, none is `none`.

    Raises InputError for what is no such line, a logical axis that there is not, and one that is given twice.
    """
    rules: dict[str, MeshAxes] = {}
    for line in lines:
        axis, equals, value = (part.strip() for part in line.partition("="))
        if axis in rules:
            raise InputError(f"--mesh.rules {line!r}: {axis} has a rule already; give it one")
        if not equals or not value or axis not in RULES:
            raise InputError(f"--mesh.rules {line!r}: give AXIS=MESH_AXIS, with AXIS of {', '.join(RULES)}, and "
                             f"MESH_AXIS of {', '.join(AXES)}, several joined by +, or none")
        names = tuple(name.strip() for name in value.split("+"))
        rules[axis] = None if names == ("none",) else names[0] if len(names) == 1 else names
    return rules
