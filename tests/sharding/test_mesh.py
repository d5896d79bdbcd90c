"""Mesh sizes: what fits the devices, and what is refused with a remedy."""

import dataclasses

import jax
import numpy as np
import pytest

from errors import InputError
from sharding.mesh import MeshConfig, make_layout, resolve_sizes


def test_one_axis_takes_what_is_left():
    assert resolve_sizes({"data": -1, "fsdp": 2, "tensor": 2}, 8) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_default_is_data_parallel_over_all():
    assert dict(make_layout(MeshConfig()).mesh.shape) == {"slice": 1, "data": 8, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(data=16), MeshConfig(data=2, fsdp=2),
                                    MeshConfig(data=-1, fsdp=3), MeshConfig(data=-1, fsdp=-1), MeshConfig(tensor=0)])
def test_what_does_not_fit_is_named(config):
    with pytest.raises(InputError, match=f"fsdp={config.fsdp} tensor={config.tensor}"):
        make_layout(config)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax asks of a device of a pod when it lays a mesh over the links."""

    id: int
    coords: tuple[int, int, int]
    device_kind: str = "TPU v5"
    slice_index: int = 0
    platform: str = "tpu"
    process_index: int = 0
    core_on_chip: int = 0
    client = None


def pod(shape, kind="TPU v5", slices=1):
    places = [(of, at) for of in range(slices) for at in np.ndindex(shape)]
    return [Chip(number, at, kind, of) for number, (of, at) in enumerate(places)]


@pytest.mark.parametrize(("shape", "kind", "config"), [
    ((4, 4, 4), "TPU v5", MeshConfig(tensor=2)), ((4, 4, 4), "TPU v5", MeshConfig(tensor=8)),
    ((4, 4, 4), "TPU v5", MeshConfig(1, 32, 2)), ((4, 4, 1), "TPU v6 lite", MeshConfig(1, 8, 2)),
    ((8, 8, 1), "TPU v6 lite", MeshConfig(2, 8, 4))])
def test_usual_meshes_lie_over_the_links_of_a_pod(shape, kind, config):
    """Each needs an axis of the torus to be split."""
    chips = pod(shape, kind)
    mesh = make_layout(config, chips).mesh
    assert mesh.shape["tensor"] == config.tensor
    assert {chip.id for chip in mesh.devices.flat} == set(range(len(chips)))
    with pytest.raises(NotImplementedError):
        jax.make_mesh(tuple(mesh.shape.values()), mesh.axis_names, devices=chips)


@pytest.mark.parametrize(("shape", "kind"), [
    ((4, 4, 1), "TPU v5 lite"), ((16, 16, 1), "TPU v5 lite"), ((4, 4, 1), "TPU v6 lite"), ((8, 8, 1), "TPU v6 lite"),
    ((4, 4, 4), "TPU v5"), pytest.param((8, 8, 8), "TPU v5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("slices", [1, 2, 4])
def test_every_size_of_tensor_opens_on_every_pod(shape, kind, slices):
    """Within a slice; a slice of the mesh is a slice of the pod."""
    chips = pod(shape, kind, slices)
    for tensor in (1, 2, 4, 8):
        for data, fsdp in ((1, -1), (-1, 1)):
            mesh = make_layout(MeshConfig(data, fsdp, tensor, slice=slices), chips).mesh
            assert (mesh.shape["slice"], mesh.shape["tensor"]) == (slices, tensor)
            assert {chip.id for chip in mesh.devices.flat} == set(range(len(chips)))
            assert all({chip.slice_index for chip in each.flat} == {number} for number, each in enumerate(mesh.devices))


@pytest.mark.parametrize(("chips", "config", "words"), [
    (pod((4, 4, 4)), MeshConfig(slice=2), "--mesh.slice 2: the devices are of 1 slice.* set --mesh.slice 1$"),
    (pod((4, 4, 1), slices=2), MeshConfig(), "--mesh.slice 1: .* 2 slice.* with 16 devices each; set --mesh.slice 2$"),
    (pod((4, 4, 1), slices=2), MeshConfig(slice=4), "set --mesh.slice 2$"),
    (pod((4, 4, 1), slices=2), MeshConfig(1, 1, 32), "set --mesh.slice 2$"),
    (pod((4, 4, 1), slices=2)[:24], MeshConfig(slice=2), "the slices have 16, 8 devices"),
    (pod((4, 4, 4))[:10], MeshConfig(1, 5, 2), "fsdp=5 tensor=2 cannot be laid over the links of 10 TPU v5; choose"),
    (pod((2, 2, 1)), MeshConfig(tensor=8), "does not fit 4 device.* --mesh.slice, --mesh.data, --mesh.fsdp"),
    (pod((2, 2, 1)), MeshConfig(slice=0), "slice=0 .*: sizes are positive")])
def test_what_no_pod_has_is_one_line(chips, config, words):
    with pytest.raises(InputError, match=words) as error:
        make_layout(config, chips)
    assert "\n" not in str(error.value)


def test_elsewhere_slices_are_of_processes_in_their_order():
    hosts = [dataclasses.replace(chip, platform="gpu", device_kind="H100", process_index=chip.id % 4, slice_index=0)
             for chip in pod((4, 4, 1))]
    for count in (2, 4):
        mesh = make_layout(MeshConfig(1, -1, slice=count), hosts).mesh
        assert [sorted({chip.process_index for chip in each.flat}) for each in mesh.devices] == np.arange(4).reshape(
            count, -1).tolist()
    with pytest.raises(InputError, match="--mesh.slice 8: the devices are of 4 processes"):
        make_layout(MeshConfig(1, -1, slice=8), hosts)
    alone = make_layout(MeshConfig(1, 2, 2, slice=2)).mesh
    assert [each.id for each in alone.devices.flat] == list(range(8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:4x4", "v5e:16x16", "v6e:4x4", "v6e:8x8", "v5p:4x4x4", "v5p:8x8x8"])
@pytest.mark.parametrize("slices", [1, 2, 4])
def test_real_topologies_open(name, slices):
    """As libtpu describes them, where it is installed."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices).devices
    for tensor in (1, 2, 4, 8):
        mesh = make_layout(MeshConfig(1, -1, tensor, slice=slices), chips).mesh
        assert mesh.size == len(chips)
        assert [{getattr(chip, "slice_index", 0) for chip in each.flat} for each in mesh.devices] == [
            {number} for number in range(slices)]  # of a pod of one slice libtpu gives no number
