"""The table from logical to mesh axes: specs, and every mistake an error that names array, axis and remedy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from errors import InputError
from models.config import PRESETS
from models.lora import LoRAConfig
from models.transformer import Transformer, init_variables
from models.weights import abstract_params
from sharding import rules
from sharding.mesh import MeshConfig, make_mesh


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def test_kernels_are_split_over_fsdp_and_tensor(mesh):
    spec = rules.param_spec("q", (2, 32, 64), ("layers", "embed", "heads"), mesh)
    assert spec == PartitionSpec(None, "fsdp", "tensor")


def test_unknown_axis(mesh):
    with pytest.raises(InputError, match="unknown logical axis 'hats'"):
        rules.param_spec("q", (2,), ("hats",), mesh)


def test_colliding_axes(mesh):
    with pytest.raises(InputError, match="collide"):
        rules.param_spec("q", (4, 4), ("mlp", "heads"), mesh)


def test_size_that_does_not_divide(mesh):
    with pytest.raises(InputError, match=r"params/q: axis 'heads' of size 9 .* --mesh.tensor"):
        rules.param_spec("params/q", (32, 9), ("embed", "heads"), mesh)


def test_large_array_left_replicated(mesh):
    with pytest.raises(InputError, match=r"big \(4096, 1024\) would be replicated"):
        rules.param_spec("big", (4096, 1024), ("layers", "features"), mesh)
    only_data = make_mesh(MeshConfig(data=8))
    assert rules.param_spec("big", (4096, 1024), ("layers", "features"), only_data) == PartitionSpec(None, None)


def test_large_array_replicated_on_purpose():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2, allow_replicated=True))
    assert rules.param_spec("big", (4096, 1024), ("layers", "features"), mesh) == PartitionSpec(None, None)
    rules.MAY_REPLICATE.clear()


@pytest.mark.parametrize("entry", ["fdsp", ("fsdp", "fsdp"), ("data", "model"), ["fsdp"], 4, ("fsdp", None)])
def test_a_line_of_the_table_that_is_impossible_is_explained(monkeypatch, entry):
    monkeypatch.setitem(rules.RULES, "embed", entry)
    with pytest.raises(InputError, match=r"RULES in sharding/rules.py maps 'embed' to .*; give None, one of"):
        make_mesh(MeshConfig(fsdp=4, data=2))


@pytest.mark.parametrize("entry", [None, "data", ("tensor", "fsdp")])
def test_a_line_of_the_table_may_be_another(monkeypatch, entry):
    monkeypatch.setitem(rules.RULES, "embed", entry)
    make_mesh(MeshConfig(fsdp=4, data=2))


@pytest.mark.parametrize("preset", ["llama3.1-8b", "llama3.1-70b"])
def test_large_adapters_lay_over_tensor_meshes(preset):
    model = Transformer(PRESETS[preset], LoRAConfig(rank=64))
    boxed = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    rules.tree_shardings(boxed, make_mesh(MeshConfig(data=1, fsdp=1, tensor=8)))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_lays_over_fsdp(preset):
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    boxed = abstract_params(PRESETS[preset])
    shardings = rules.tree_shardings(boxed, mesh)
    for leaf, sharding in zip(jax.tree.leaves(nn.meta.unbox(boxed)), jax.tree.leaves(shardings), strict=True):
        assert leaf.size < rules.LARGE or sharding.shard_shape(leaf.shape) != leaf.shape


def test_constrain_lays_out_what_divides_and_leaves_the_rest(mesh):
    with jax.set_mesh(mesh):
        split = jax.jit(lambda x: rules.constrain(x, "batch", "length", "heads"))(jnp.ones((4, 3, 6)))
        odd = jax.jit(lambda x: rules.constrain(x, "batch", "length", "heads"))(jnp.ones((4, 3, 9)))
    assert split.sharding.shard_shape(split.shape) == (1, 3, 3)
    assert odd.sharding.shard_shape(odd.shape) == (1, 3, 9)


def test_constrain_without_a_mesh_is_nothing():
    x = jnp.ones((4, 3))
    assert rules.constrain(x, "batch", "length") is x
