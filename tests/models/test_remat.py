"""What each policy keeps, by the kernels that a gradient calls and by the arrays that go to the host's memory."""

import collections
import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from tiny import CONFIG, boxed_variables

from models.remat import CUDNN
from models.transformer import Transformer
from sharding.mesh import MeshConfig, make_layout


def gradient(remat, attention, dtype="float32"):
    """The jaxpr of a gradient through all layers of the tiny model, whose layers are one scan."""
    model = Transformer(dataclasses.replace(CONFIG, remat=remat, attention=attention, dtype=dtype))
    params, tokens = nn.meta.unbox(boxed_variables())["params"], jax.ShapeDtypeStruct((2, 128), jnp.int32)
    total = jax.grad(lambda params, tokens: model.apply({"params": params}, tokens, tokens, tokens).sum())
    return jax.make_jaxpr(total)(params, tokens)


@pytest.fixture
def interpreted(monkeypatch):
    make = splash_attention_kernel.make_splash_mqa_single_device
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mqa_single_device",
                        functools.partial(make, interpret=True))


@pytest.mark.parametrize(("remat", "forward"), [
    ("attention", 1), ("full", 2), *(pytest.param(remat, 1, marks=pytest.mark.slow) for remat in ("none", "dots"))])
def test_flash_runs_once_unless_layers_are_recomputed_whole(remat, forward, interpreted):
    assert str(gradient(remat, "flash")).count("name=splash_mqa_fwd") == forward


@pytest.mark.parametrize(("remat", "forward"), [
    ("offload", 1), *(pytest.param(remat, number, marks=pytest.mark.slow)
                      for remat, number in (("none", 1), ("dots", 1), ("attention", 1), ("full", 2)))])
def test_cudnn_runs_once_unless_layers_are_recomputed_whole(remat, forward, monkeypatch):
    module = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(module, "check_cudnn_version", lambda: 91000)
    text = str(gradient(remat, "cudnn", "bfloat16"))
    assert text.count(CUDNN) == forward
    assert text.count(CUDNN.replace("fwd", "bwd")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "forward"), [
    ("none", 1), ("dots", 1), ("attention", 1), ("full", 2), ("offload", 1)])
def test_a_tpus_program_calls_each_kernel_once_a_layer(remat, forward, monkeypatch):
    """As libtpu compiles it, where that is installed. The loop over layers may hold two of them."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices
    layout = make_layout(MeshConfig(data=1, fsdp=2, tensor=2), chips)
    config = dataclasses.replace(CONFIG, embed_dim=256, head_dim=128, num_heads=4, dtype="bfloat16", remat=remat)
    model = Transformer(dataclasses.replace(config, attention="flash"), layout=layout)
    boxed = boxed_variables(config=config)["params"]
    params, tokens = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), (
        nn.meta.unbox(boxed), jax.ShapeDtypeStruct((4, 256), jnp.int32)), (
        layout.tree_shardings(boxed), layout.sharding("batch", None)))
    total = jax.grad(lambda params, tokens: model.apply({"params": params}, tokens, tokens, tokens).sum())
    text = jax.jit(total).lower(params, tokens).compile().as_text()
    calls = collections.Counter(re.findall(r"%splash_mqa_(fwd|dkv|dq)\S* = \S.* custom-call\(", text))
    assert calls["fwd"] == forward * calls["dkv"] > 0
    assert calls["dq"] == 0  # it is part of dkv's


def kept(remat, attention="flash", dtype="float32"):
    """Shapes of what the forward pass keeps of both layers, without [L 2, B 2], and in which memory."""
    forward = next(eqn for eqn in gradient(remat, attention, dtype).eqns if eqn.primitive.name == "scan")
    arrays = [each.aval for each in forward.outvars if each.aval.shape[:2] == (2, 2) and each.aval.size > 1000]
    return sorted(each.shape[2:] for each in arrays), {each.memory_space for each in arrays}


OF_ATTENTION = [(2, 4, 128), (2, 4, 128, 8)]
"""the logsumexp of scores [K, G, T], and the output [K, G, T, H] of a row"""


def test_offload_keeps_layer_inputs_and_attention_on_the_host_alone(interpreted):
    assert kept("offload") == ([*OF_ATTENTION, (128, 32)], {jax.memory.Space.Host})


def test_dots_keep_what_linear_layers_give_and_attention(interpreted):
    """Of k, v, q, o, gate and up; what down gives is the next layer's input."""
    linear = [(128, *features) for features in ((2, 8), (2, 8), (8, 8), (32,), (32,), (64,), (64,))]
    assert kept("dots") == ([*OF_ATTENTION, *linear], {jax.memory.Space.Device})


def test_no_policy_keeps_what_matmuls_read_and_no_step_of_elementwise_work():
    """Attention's weights once; q, k and v, q and k before their norms, too; what goes into both norms and comes out;
    gate, up, and what o and down read."""
    heads = [(2, 4, 128, 8), (2, 4, 128, 128), *[(128, 2, 8)] * 3, *[(128, 8, 8)] * 2]
    assert kept("none", "xla", "bfloat16")[0] == [*heads, *[(128, 32)] * 4, *[(128, 64)] * 3]
