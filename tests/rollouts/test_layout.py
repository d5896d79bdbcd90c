"""The layout for sampling: its sizes, and what it takes of a device."""

import jax
import pytest
from tiny import CONFIG, variables_on

from errors import InputError
from models.transformer import Transformer
from rollouts.engine import Engine, Request, capacity_for
from rollouts.layout import num_shares, sampling_layout
from sharding.layout import RULES
from sharding.mesh import MeshConfig, make_layout
from sharding.settings import SamplingMesh

MODEL = Transformer(CONFIG)  # 2 kv heads


def sizes(layout, **sampling):
    found = sampling_layout(layout, MODEL, SamplingMesh(**sampling))
    assert [each.id for each in found.mesh.devices.flat] == [each.id for each in layout.mesh.devices.flat]
    return found.ways("batch"), found.size("tensor")


def test_what_trains_as_fsdp_or_tensor_is_tensor_as_far_as_heads_allow():
    assert sizes(make_layout(MeshConfig(8))) == (8, 1)
    assert sizes(make_layout(MeshConfig(1, 8))) == (4, 2)
    assert sizes(make_layout(MeshConfig(4, 1, 2))) == (4, 2)
    assert sizes(make_layout(MeshConfig(1, 2, 2, slice=2))) == (4, 2)


def test_sizes_that_are_given_hold():
    layout = make_layout(MeshConfig(1, 8))
    assert sizes(layout, tensor=4) == (2, 4)
    assert sizes(layout, data=8) == (8, 1)
    assert sizes(layout, data=1, tensor=8) == (1, 8)


@pytest.mark.parametrize("sampling", [{"tensor": 3}, {"data": 3}, {"data": 2, "tensor": 2}, {"tensor": 0},
                                      {"data": 0}, {"data": -2, "tensor": 4}, {"tensor": 16}])
def test_sizes_that_do_not_fit_are_refused(sampling):
    with pytest.raises(InputError, match=r"--sampling.mesh.data .* do not fit 8 device\(s\)"):
        sizes(make_layout(MeshConfig(1, 8)), **sampling)


def test_heads_are_not_split_over_the_network_between_slices():
    layout = make_layout(MeshConfig(1, 4, slice=2, rules=("residual_length=fsdp", "batch=data")))
    assert sizes(layout, tensor=4) == (2, 4)
    with pytest.raises(InputError, match="--sampling.mesh.tensor 8 .* divides a slice's 4 devices"):
        sizes(layout, tensor=8)
    assert sampling_layout(layout, MODEL).rules == tuple(RULES.items())  # rules are of training


def test_weights_on_devices_that_are_not_the_engines_are_refused():
    layout = make_layout(MeshConfig(1, 8))
    variables = {"params": variables_on(layout)["params"]}
    with pytest.raises(InputError, match="lie on the mesh slice 1 data 1 fsdp 8 tensor 1 and the engine samples on 1 "):
        Engine(MODEL, 2, 64).load(variables)
    assert Engine(MODEL.clone(layout=layout), 2, 64).layout == Engine(MODEL, 2, 64, layout=layout).layout


@pytest.mark.parametrize("memory", [0, 2**40])
@pytest.mark.parametrize(("num_slots", "longest"), [(1, 200), (5, 131), (8, 256), (9, 8)])
def test_a_context_of_the_longest_length_fits_each_share(monkeypatch, memory, num_slots, longest):
    """However little memory there is; with much, in each slot."""
    monkeypatch.setattr("rollouts.memory._memory", lambda: memory)
    layout = make_layout(MeshConfig(8))
    capacity = capacity_for(MODEL, num_slots, longest, page=16, shares=num_shares(layout, MODEL))
    engine = Engine(MODEL, num_slots, capacity, 16, layout)
    engine.submit([Request([1] * (longest - 3), 3, jax.random.key(0))] * num_slots)
    positions, slots = engine._slots.num_pages * 16, engine._slots.of_share
    assert longest <= positions <= (slots if memory else 1) * (longest + 32)
    assert not memory or positions >= slots * longest


def test_the_memory_told_is_what_lies_on_a_device():
    layout = make_layout(MeshConfig(1, 8))
    engine = Engine(MODEL, 8, capacity=2**14, layout=layout, sampling=SamplingMesh(tensor=2))
    engine.load({"params": variables_on(layout)["params"]})

    def held(tree):
        return sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards
                   if shard.device == jax.devices()[0]) / 2**20

    assert engine.describe() == (
        f"sampling on 8 device(s), data 4 tensor 2: {held(engine._weights):,.1f} MiB of weights and "
        f"{held(engine._cache):,.1f} MiB of cache on each, 8 slots in all")
    assert held(engine._cache) == 0.5
