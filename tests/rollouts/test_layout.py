"""The layout for sampling: its sizes, and what it takes of a device."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from tiny import CONFIG, variables_on

from errors import InputError
from models.transformer import Transformer
from rollouts.engine import Engine, Request, capacity_for
from rollouts.layout import num_shares, sampling_mesh
from sharding.mesh import MeshConfig, make_mesh
from sharding.settings import SamplingMesh

MODEL = Transformer(CONFIG)  # 2 kv heads


def of_four_axes():
    return Mesh(np.asarray(jax.devices()).reshape(2, 1, 2, 2), ("slice", "data", "fsdp", "tensor"))


def sizes(mesh, **sampling):
    found = sampling_mesh(mesh, MODEL, SamplingMesh(**sampling))
    assert [each.id for each in found.devices.flat] == [each.id for each in mesh.devices.flat]
    return found.shape["data"], found.shape["tensor"]


def test_what_trains_as_fsdp_or_tensor_is_tensor_as_far_as_heads_allow():
    assert sizes(make_mesh(MeshConfig(8))) == (8, 1)
    assert sizes(make_mesh(MeshConfig(1, 8))) == (4, 2)
    assert sizes(make_mesh(MeshConfig(4, 1, 2))) == (4, 2)
    assert sizes(of_four_axes()) == (4, 2)


def test_sizes_that_are_given_hold():
    mesh = make_mesh(MeshConfig(1, 8))
    assert sizes(mesh, tensor=4) == (2, 4)
    assert sizes(mesh, data=8) == (8, 1)
    assert sizes(mesh, data=1, tensor=8) == (1, 8)


@pytest.mark.parametrize("sampling", [{"tensor": 3}, {"data": 3}, {"data": 2, "tensor": 2}, {"tensor": 0},
                                      {"data": 0}, {"data": -2, "tensor": 4}, {"tensor": 16}])
def test_sizes_that_do_not_fit_are_refused(sampling):
    with pytest.raises(InputError, match=r"--sampling.mesh.data .* do not fit 8 device\(s\)"):
        sizes(make_mesh(MeshConfig(1, 8)), **sampling)


@pytest.mark.parametrize("memory", [0, 2**40])
@pytest.mark.parametrize(("num_slots", "longest"), [(1, 200), (5, 131), (8, 256), (9, 8)])
def test_a_context_of_the_longest_length_fits_each_share(monkeypatch, memory, num_slots, longest):
    """However little memory there is; with much, in each slot."""
    monkeypatch.setattr("rollouts.memory._memory", lambda: memory)
    mesh = make_mesh(MeshConfig(8))
    engine = Engine(MODEL, num_slots, capacity_for(MODEL, num_slots, longest, page=16, shares=num_shares(mesh, MODEL)),
                    16, mesh)
    engine.submit([Request([1] * (longest - 3), 3, jax.random.key(0))] * num_slots)
    positions, slots = engine._slots.num_pages * 16, engine._slots.of_share
    assert longest <= positions <= (slots if memory else 1) * (longest + 32)
    assert not memory or positions >= slots * longest


def test_the_memory_told_is_what_lies_on_a_device():
    mesh = make_mesh(MeshConfig(1, 8))
    engine = Engine(MODEL, 8, capacity=2**14, mesh=mesh, sampling=SamplingMesh(tensor=2))
    engine.load({"params": variables_on(mesh)["params"]})

    def held(tree):
        return sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards
                   if shard.device == jax.devices()[0]) / 2**20

    assert engine.describe() == (
        f"sampling on 8 device(s), data 4 tensor 2: {held(engine._weights):,.1f} MiB of weights and "
        f"{held(engine._cache):,.1f} MiB of cache on each, 8 slots in all")
    assert held(engine._cache) == 0.5
