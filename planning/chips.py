"""What a chip does at best: its makers' figures, by JAX's device_kind.

Clock: what makes peak FLOP/s of the products that its matrix units do in a cycle (128 x 128: v5p 8 of them, v5e 4;
256 x 256: v6e 4, TPU7x 4 a device). Links: "How to Scale Your Model" (Austin et al. 2025,
jax-ml.github.io/scaling-book), bytes a second one way; the network between slices, too.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from errors import InputError
from sharding.memory import HBM_GIB, MEMORY_SPEED
from training.throughput import PEAK_TFLOPS


class Chip(NamedTuple):
    """Of a JAX device."""

    peak_flops: float
    """a second, dense bfloat16"""
    clock: float
    """cycles a second"""
    memory: int
    """bytes, for programs"""
    memory_speed: float
    """bytes a second"""
    link_speed: float
    """bytes a second, one way, of each link to a neighbour"""
    network_speed: float
    """bytes a second that a device gives to other slices"""
    wraps_at: int
    """chips along an axis of the torus from which on, and in multiples of which, it is closed to a ring"""
    kernel_share: float
    """of peak_flops, that attention's kernel reaches: docs/measured.md, the compiler's schedule of a block"""


_FURTHER = {  # clock in GHz, link and network in GB/s, wraps at, kernel's share
    "TPU v5 lite": (1.5, 45, 3.125, 16, 0.65),
    "TPU v5": (1.75, 90, 6.25, 4, 0.64),
    "TPU v6 lite": (1.75, 90, 12.5, 16, 0.3),
    "TPU7x": (2.2, 90, 6.25, 4, 0.3)}

USABLE_GIB = {"TPU v5 lite": 15.75, "TPU v6 lite": 31.25}
"""of a device's memory what programs may have, as the compiler says when one does not fit; of the others all"""

KINDS = {"v5e": "TPU v5 lite", "v6e": "TPU v6 lite", "v5p": "TPU v5", "tpu7x": "TPU7x"}
"""device_kind by the name of a topology's chip"""

PODS = {"v5e": (2, 256), "v6e": (2, 256), "v5p": (3, 8960), "tpu7x": (3, 9216)}
"""(dimensions of the torus, chips of the largest), by the name of a topology's chip, from Google Cloud's pages of each
TPU version: the compiler takes others, too"""


def chip_of(device_kind: str) -> Chip:
    """Raises InputError for a kind that the table has not."""
    if device_kind not in _FURTHER:
        raise InputError(f"{device_kind}: planning/chips.py knows {', '.join(_FURTHER)}; add what its maker states")
    clock, link, network, wraps_at, share = _FURTHER[device_kind]
    usable = int(USABLE_GIB.get(device_kind, HBM_GIB[device_kind]) * 2**30)
    return Chip(PEAK_TFLOPS[device_kind] * 1e12, clock * 1e9, usable, MEMORY_SPEED[device_kind], link * 1e9,
                network * 1e9, wraps_at, share)


def chip_named(topology: str) -> Chip:
    """Of a topology's name, before it is compiled for. Raises InputError for a chip that the table has not."""
    name = topology.partition(":")[0]
    if name not in KINDS:
        raise InputError(f"--topology {topology}: no chip {name!r} is known; there are {', '.join(KINDS)}, such as "
                         f"v5p:2x2x2")
    return chip_of(KINDS[name])


def exchange_speed(chip: Chip, coords: np.ndarray, slices: np.ndarray) -> float:
    """Bytes a second that a device sends in a collective of a group whose devices have these coordinates [n, 3] in the
    torus and lie in these slices [n]: one link one way along each axis that the group spans, two where it is a ring.

    A group of one chip's cores exchanges at the speed of their memory."""
    if len(set(slices.tolist())) > 1:
        return chip.network_speed
    spans = coords.max(axis=0) - coords.min(axis=0) + 1
    links = sum(2 if span % chip.wraps_at == 0 else 1 for span in spans.tolist() if span > 1)
    return chip.link_speed * links if links else chip.memory_speed


def group_speed(chip: Chip, axes: tuple[str, ...], shape: dict[str, int], devices: Any) -> float:
    """exchange_speed of the slowest group along mesh axes, `devices` being (coords [N, 3], slices [N]) in the mesh's
    order."""
    coords, slices = (np.asarray(each) for each in devices)
    names, numbers = list(shape), np.arange(math.prod(shape.values())).reshape(tuple(shape.values()))
    order = [names.index(name) for name in names if name not in axes] + [names.index(name) for name in axes]
    size = math.prod(shape[name] for name in axes)
    groups = numbers.transpose(order).reshape(-1, size)
    return min(exchange_speed(chip, coords[group], slices[group]) for group in groups[:64])
