"""Mesh sizes: what fits the devices, and what is refused with a remedy."""

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
