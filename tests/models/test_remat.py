"""What each policy keeps, by the kernels that a gradient calls and by the arrays that go to the host's memory."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from tiny import CONFIG, boxed_variables

from models.remat import CUDNN
from models.transformer import Transformer


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


def test_offload_keeps_layer_inputs_and_attention_on_the_host_alone(interpreted):
    """L 2, B 2, T 128, D 32; attention's output is [K 2, G 4, T, H 8] of a row, its logsumexp [K, G, T]."""
    forward = next(eqn for eqn in gradient("offload", "flash").eqns if eqn.primitive.name == "scan")
    kept = [each.aval for each in forward.outvars if each.aval.shape[:2] == (2, 2) and each.aval.size > 1000]
    assert sorted(each.shape[2:] for each in kept) == [(2, 4, 128), (2, 4, 128, 8), (128, 32)]
    assert {each.memory_space for each in kept} == {jax.memory.Space.Host}
