"""Mesh sizes: what fits the devices, and what is refused with a remedy."""

import dataclasses

import jax
import numpy as np
import pytest

from errors import InputError
from sharding.mesh import MeshConfig, make_mesh, resolve_sizes


def test_one_axis_takes_what_is_left():
    assert resolve_sizes({"data": -1, "fsdp": 2, "tensor": 2}, 8) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_default_is_data_parallel_over_all():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(data=16), MeshConfig(data=2, fsdp=2),
                                    MeshConfig(data=-1, fsdp=3), MeshConfig(data=-1, fsdp=-1), MeshConfig(tensor=0)])
def test_what_does_not_fit_is_named(config):
    with pytest.raises(InputError, match=f"fsdp={config.fsdp} tensor={config.tensor}"):
        make_mesh(config)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax asks of a device of a pod when it lays a mesh over the links."""

    id: int
    coords: tuple[int, int, int]
    device_kind: str = "TPU v5"
    platform: str = "tpu"
    process_index: int = 0
    slice_index: int = 0
    core_on_chip: int = 0
    client = None


@pytest.mark.parametrize(("shape", "kind", "config"), [
    ((4, 4, 4), "TPU v5", MeshConfig(tensor=2)), ((4, 4, 4), "TPU v5", MeshConfig(tensor=8)),
    ((4, 4, 4), "TPU v5", MeshConfig(1, 32, 2)), ((4, 4, 1), "TPU v6 lite", MeshConfig(1, 8, 2)),
    ((8, 8, 1), "TPU v6 lite", MeshConfig(2, 8, 4))])
def test_usual_meshes_lie_over_the_links_of_a_pod(shape, kind, config):
    """Each needs an axis of the torus to be split."""
    chips = [Chip(number, at, kind) for number, at in enumerate(np.ndindex(shape))]
    mesh = make_mesh(config, chips)
    assert mesh.shape["tensor"] == config.tensor
    assert {chip.id for chip in mesh.devices.flat} == set(range(len(chips)))
    with pytest.raises(NotImplementedError):
        jax.make_mesh(tuple(mesh.shape.values()), mesh.axis_names, devices=chips)
