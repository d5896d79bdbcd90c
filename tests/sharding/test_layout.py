"""Mesh and rules as one: specs, and every mistake an error that names array, axis and remedy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from tiny import CONFIG, LORA, boxed_variables, one_device, variables_on

from errors import InputError
from models.config import PRESETS
from models.lora import LoRAConfig
from models.transformer import Transformer, init_variables
from models.weights import abstract_params, params_shardings
from sharding.layout import LARGE, RULES, Layout, check_layout, constrain
from sharding.mesh import MeshConfig, make_layout


@pytest.fixture
def layout():
    return make_layout(MeshConfig(data=2, fsdp=2, tensor=2))


def test_kernels_are_split_over_fsdp_and_tensor(layout):
    spec = layout.param_spec("q", (2, 32, 64), ("layers", "embed", "heads"))
    assert spec == PartitionSpec(None, "fsdp", "tensor")


def test_unknown_axis(layout):
    with pytest.raises(InputError, match="unknown logical axis 'hats'"):
        layout.param_spec("q", (2,), ("hats",))


def test_colliding_axes(layout):
    with pytest.raises(InputError, match="^q: its logical axes mlp and heads collide on the mesh axis tensor"):
        layout.param_spec("q", (4, 4), ("mlp", "heads"))


@pytest.mark.parametrize(("rule", "words"), [
    ("vocab=fsdp", "^embedding: its logical axes vocab and embed collide on the mesh axis fsdp"),
    ("mlp=fsdp", "^layers/mlp/down/kernel: its logical axes mlp and embed collide on the mesh axis fsdp"),
    ("residual_length=fsdp", "^an activation: its logical axes batch and residual_length collide on .* fsdp"),
    ("query_length=tensor", "^an activation: its logical axes query_length and heads collide on .* tensor"),
    ("key_length = data + tensor", "^an activation: its logical axes batch and key_length collide on .* data")])
def test_rules_that_collide_in_a_model_are_refused_with_its_shapes(rule, words):
    """Before weights are read."""
    layout = make_layout(MeshConfig(2, 2, 2, rules=(rule,)))
    with pytest.raises(InputError, match=words):
        params_shardings(CONFIG, layout)


def test_rules_that_collide_in_an_adapter_too():
    layout = make_layout(MeshConfig(2, 2, 2, rules=("rank=fsdp",)))
    params_shardings(CONFIG, layout)
    with pytest.raises(InputError, match="^layers/attn/k/a: its logical axes embed and rank collide on the mesh axis"):
        layout.tree_shardings(boxed_variables(LORA)["lora"])


def test_a_rule_that_leaves_large_weights_whole_is_refused():
    layout = make_layout(MeshConfig(1, 8, rules=("embed=none",)))
    with pytest.raises(InputError, match=r"^embedding \(128256, 4096\) would be replicated .* in --mesh.rules"):
        layout.tree_shardings(abstract_params(PRESETS["llama3.1-8b"]))


@pytest.mark.parametrize(("lines", "words"), [
    (("hats=tensor",), "--mesh.rules 'hats=tensor': give AXIS=MESH_AXIS, with AXIS of batch, residual_length, "),
    (("residual_length",), "--mesh.rules 'residual_length': give AXIS=MESH_AXIS"),
    (("=tensor",), "--mesh.rules '=tensor': give"), (("embed=",), "--mesh.rules 'embed=': give"), (("",), "give AXIS"),
    (("length=tensor",), "with AXIS of batch, residual_length"),
    (("embed=tensro",), "--mesh.rules embed=tensro: give none, one of the mesh's axes .slice, data, fsdp, tensor"),
    (("embed=fsdp+none",), r"--mesh.rules embed=fsdp\+none:"), (("embed=a=b",), "--mesh.rules embed=a=b:"),
    (("embed=fsdp+",), r"--mesh.rules embed=fsdp\+:"), (("embed=fsdp,data",), "--mesh.rules embed=fsdp,data:"),
    (("embed=fsdp+fsdp",), r"--mesh.rules embed=fsdp\+fsdp: .* each once"),
    (("embed=data", "embed=fsdp"), "--mesh.rules 'embed=fsdp': embed has a rule already; give it one")])
def test_rules_that_are_none_are_refused(lines, words):
    with pytest.raises(InputError, match=words) as error:
        make_layout(MeshConfig(rules=lines))
    assert "\n" not in str(error.value)


def test_a_model_without_the_layout_of_its_arrays_is_refused(layout):
    variables, alone = variables_on(layout), one_device()
    check_layout(Transformer(CONFIG, layout=layout), variables)
    check_layout(Transformer(CONFIG), variables_on(alone))
    for other, words in ((None, "no layout"), (alone, "that of the mesh slice 1 data 1 fsdp 1 tensor 1"),
                         (make_layout(MeshConfig(1, 4, 2)), "that of the mesh slice 1 data 1 fsdp 4 tensor 2")):
        for arrays in (variables, layout.sharding()):
            with pytest.raises(InputError, match=f"mesh slice 1 data 2 fsdp 2 tensor 2 and the model has {words}; "):
                check_layout(Transformer(CONFIG, layout=other), arrays)


def test_size_that_does_not_divide(layout):
    with pytest.raises(InputError, match=r"params/q: axis 'heads' of size 9 .* --mesh.tensor"):
        layout.param_spec("params/q", (32, 9), ("embed", "heads"))


def test_large_array_left_replicated(layout):
    with pytest.raises(InputError, match=r"big \(4096, 1024\) would be replicated"):
        layout.param_spec("big", (4096, 1024), ("layers", "features"))
    only_data = make_layout(MeshConfig(data=8))
    assert only_data.param_spec("big", (4096, 1024), ("layers", "features")) == PartitionSpec(None, None)


def test_large_array_replicated_on_purpose():
    layout = make_layout(MeshConfig(data=1, fsdp=4, tensor=2, allow_replicated=True))
    assert layout.param_spec("big", (4096, 1024), ("layers", "features")) == PartitionSpec(None, None)


@pytest.mark.parametrize("entry", ["fdsp", ("fsdp", "fsdp"), ("data", "model"), ["fsdp"], 4, ("fsdp", None)])
def test_a_line_of_the_table_that_is_impossible_is_explained(layout, entry):
    with pytest.raises(InputError, match=r"--mesh.rules embed=.*: give none, one of the mesh's axes"):
        Layout(layout.mesh, tuple((RULES | {"embed": entry}).items()))


@pytest.mark.parametrize(("line", "spec"), [
    ("embed=none", (None, None, "tensor")), ("embed=data", (None, "data", "tensor")), ("heads = tensor + fsdp", None),
    ("embed=tensor+fsdp", None)])
def test_a_line_of_the_table_may_be_another(line, spec):
    layout = make_layout(MeshConfig(fsdp=2, data=2, tensor=2, rules=(line,)))
    axes = ("layers", "embed", "heads")
    if spec:
        assert layout.param_spec("q", (2, 32, 64), axes) == PartitionSpec(*spec)
    else:
        with pytest.raises(InputError, match="^q: its logical axes embed and heads collide on the mesh axis"):
            layout.param_spec("q", (2, 32, 64), axes)


@pytest.mark.parametrize("preset", ["llama3.1-8b", "llama3.1-70b"])
def test_large_adapters_lay_over_tensor_meshes(preset):
    model = Transformer(PRESETS[preset], LoRAConfig(rank=64))
    boxed = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    make_layout(MeshConfig(data=1, fsdp=1, tensor=8)).tree_shardings(boxed)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_lays_over_fsdp(preset):
    layout = make_layout(MeshConfig(data=1, fsdp=8))
    boxed = abstract_params(PRESETS[preset])
    shardings = layout.tree_shardings(boxed)
    for leaf, sharding in zip(jax.tree.leaves(nn.meta.unbox(boxed)), jax.tree.leaves(shardings), strict=True):
        assert leaf.size < LARGE or sharding.shard_shape(leaf.shape) != leaf.shape


def test_constrain_lays_out_what_divides_and_leaves_the_rest(layout):
    split = jax.jit(lambda x: constrain(layout, x, "batch", "query_length", "heads"))(jnp.ones((4, 3, 6)))
    odd = jax.jit(lambda x: constrain(layout, x, "batch", "query_length", "heads"))(jnp.ones((4, 3, 9)))
    assert split.sharding.shard_shape(split.shape) == (1, 3, 3)
    assert odd.sharding.shard_shape(odd.shape) == (1, 3, 9)


def test_constrain_without_a_layout_is_nothing():
    x = jnp.ones((4, 3))
    assert constrain(None, x, "batch", "query_length") is x
