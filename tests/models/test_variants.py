"""Unusual configurations and files: the same log-probabilities as transformers, or refused by name."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from safetensors.numpy import load_file, save_file
from tiny import jitted_score, one_device, random_variables

from errors import InputError
from models import decoding
from models.config import PRESETS, ModelConfig
from models.hf_config import from_hf, to_hf
from models.pretrained import open_pretrained
from models.safetensors_weights import write_hf_folder
from models.scoring import score
from models.settings import Remat
from models.transformer import Transformer
from sharding.mesh import MeshConfig, make_layout
from tests.fixtures.variants import cases

EXPECTED = np.load(Path(cases.__file__).with_name("variants.npz"))
QUICK = {"llama, attention_bias", "mistral, layer_types", "qwen2, max_window_layers left out",
         "qwen3, yarn and layer_types", "qwen2, tied in config, a head of its own",
         "adapter, use_rslora and both patterns", "adapter, on an adapter"}
MIXED = from_hf(cases.CONFIGS["qwen3, layer_types"], "here")


@pytest.fixture
def folder(tmp_path):
    """Writes a model under another config.json."""
    def write(name, **changes):
        cases.write_model(tmp_path / "model", name)
        (tmp_path / "model" / "config.json").write_text(json.dumps(cases.CONFIGS[name] | changes))
        return tmp_path / "model"

    return write


def batch():
    tokens = cases.tokens()
    columns = {"tokens": tokens, "positions": np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
               "segment_ids": np.ones_like(tokens)}
    return jax.tree.map(jnp.asarray, columns)


def logps(folder):
    model, variables = open_pretrained(str(folder)).load(one_device())
    return jitted_score(model, variables, batch()).logps


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
                                  for name in EXPECTED])
def test_scores_equal_transformers_and_peft(name, tmp_path):
    np.testing.assert_allclose(logps(cases.write(tmp_path / "model", name)), EXPECTED[name], atol=2e-5)


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_a_configuration_survives_its_export(name):
    config = from_hf(cases.CONFIGS[name], "here")
    assert from_hf(json.loads(json.dumps(to_hf(config, "float32"))), "there") == config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral, layer_types", "qwen2, max_window_layers 2 of 4", "qwen3, attention_bias",
                                  "qwen3, yarn and layer_types", "qwen2, tied in config, a head of its own"])
def test_an_export_scores_the_same(name, folder, tmp_path):
    model, variables = open_pretrained(str(folder(name))).load(one_device())
    write_hf_folder(tmp_path / "again", variables["params"], model.config, "float32")
    np.testing.assert_array_equal(logps(tmp_path / "again"), logps(folder(name)))


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("llama, linear", {"attention_multiplier": 2.0}, "key 'attention_multiplier' \\(2.0\\) is not known for llama"),
    ("llama, linear", {"sliding_window": 8}, "sliding_window=8 is not supported for llama"),
    ("llama, linear", {"layer_types": [cases.FULL] * 3 + [cases.SLIDING]}, "no window is in force"),
    ("llama, linear", {"mlp_bias": True}, "mlp_bias=true is not supported"),
    ("llama, linear", {"hidden_act": "gelu"}, 'hidden_act="gelu" .* "silu" or "swish"'),
    ("llama, linear", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama, linear", {"num_hidden_layers": "4"}, 'num_hidden_layers="4" is no positive whole number'),
    ("llama, linear", {"num_key_value_heads": 3}, "num_attention_heads=4 must divide over num_key_value_heads=3"),
    ("llama, linear", {"head_dim": 7}, "head_dim=7 by two"),
    ("llama, linear", {"tie_word_embeddings": "false"}, 'tie_word_embeddings="false" is neither'),
    ("llama, linear", {"auto_map": {"AutoModel": "m.Mine"}}, "auto_map"),
    ("llama, linear", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised \\(gptq\\).*dequantise"),
    ("llama, linear", {"quantization": {"group_size": 64}}, "quantization says that the weights are quantised"),
    ("llama, linear", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "truncate": 3}}, "no key 'truncate'"),
    ("llama, linear", {"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "'default' has no key 'factor'"),
    ("llama, linear", {"rope_parameters": {"rope_type": "linear"}}, "'linear' lacks 'factor'"),
    ("llama, linear", {"rope_parameters": {"rope_type": "linear", "factor": "2"}}, 'factor="2", which is no number'),
    ("llama, linear", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "differ in factor"),
    ("llama, linear", {"rope_scaling": "linear"}, 'rope_scaling="linear" is no object'),
    ("llama, linear", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'.*neighbours"),
    ("llama, linear", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 4}}, "'longrope'"),
    ("llama, linear", {"rope_parameters": {"rope_type": "proportional"}}, "'proportional' is not supported; only"),
    ("qwen3, layer_types", {"rope_parameters": {cases.FULL: {"rope_theta": 1e4}, cases.SLIDING: {"rope_theta": 1e3}}},
     "kinds of layers rotary positions of their own"),
    ("qwen3, layer_types", {"layer_types": [cases.FULL] * 3}, "one kind for each of the 4 layers"),
    ("qwen3, layer_types", {"layer_types": [cases.FULL] * 3 + ["linear_attention"]}, 'layer_types has "linear_att'),
    ("qwen3, layer_types", {"use_sliding_window": False}, "no window is in force"),
    ("mistral, window", {"attention_bias": True}, "attention_bias=true is not supported for mistral")], ids=str)
def test_what_is_not_computed_is_named(name, changes, message, folder):
    with pytest.raises(InputError, match=message) as refused:
        open_pretrained(str(folder(name, **changes)))
    assert "config.json: " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_keys_that_change_nothing_are_taken(folder):
    harmless = {"transformers_version": "5.24.0", "initializer_range": 0.1, "attention_dropout": 0.1,
                "use_cache": False, "eos_token_id": [1, 2], "temperature": 0.6, "unsloth_fixed": True,
                "is_llama_config": True, "rope_interleaved": False, "quantization_config": None, "anything": None,
                "layer_types": [cases.FULL] * 4, "use_sliding_window": False, "sliding_window": 9,
                "max_window_layers": 3}
    config = cases.CONFIGS["llama, linear"]
    assert from_hf(config | harmless, "here") == from_hf(config, "here")


@pytest.mark.parametrize(("preset", "keys"), [
    ("smollm2-135m", {"is_llama_config": True, "rope_interleaved": False, "rope_scaling": None, "mlp_bias": False,
                      "pretraining_tp": 1, "attention_bias": False, "pad_token_id": 2, "use_cache": True,
                      "transformers.js_config": {"dtype": "q4"}, "_name_or_path": "somewhere"}),
    ("qwen2.5-7b", {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28,
                    "attention_dropout": 0.0, "initializer_range": 0.02}),
    ("qwen2.5-1.5b", {"use_mrope": False, "use_sliding_window": False, "sliding_window": 4096,
                      "max_window_layers": 21, "eos_token_id": 151643}),
    ("qwen3-8b", {"sliding_window": None, "max_window_layers": 36, "use_sliding_window": False, "rope_scaling": None}),
    ("llama3.1-8b", {"eos_token_id": [128001, 128008, 128009], "mlp_bias": False, "unsloth_fixed": True}),
], ids=lambda each: each if isinstance(each, str) else "")
def test_published_configurations_are_taken(preset, keys):
    """The keys that the models' own config.json has besides those that to_hf writes."""
    config = PRESETS[preset]
    assert from_hf(to_hf(config, "bfloat16") | keys, "here") == config


def test_yarn_reaches_beyond_the_original_length():
    assert from_hf(cases.CONFIGS["qwen2, yarn, original length left out"], "here").max_length == 128


@pytest.mark.slow
@pytest.mark.parametrize("remat", get_args(Remat))
def test_gradients_of_layers_that_differ(remat):
    """Those of the mean log-probability along one direction, against a difference."""
    model = Transformer(dataclasses.replace(MIXED, remat=remat))
    params, direction = (random_variables(seed=seed, config=MIXED)["params"] for seed in (0, 1))

    @jax.jit
    def mean(step):
        moved = jax.tree.map(lambda x, d: x + step * d, params, direction)
        return jnp.mean(score(model, {"params": moved}, batch()).logps)

    difference = (mean(1e-3) - mean(-1e-3)) / 2e-3
    assert float(jax.grad(mean)(0.0)) == pytest.approx(float(difference), rel=2e-2)


def test_a_loop_of_decoding_has_layers_with_one_window(monkeypatch):
    def groups(platform, dtype):
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        return decoding.layer_groups(dataclasses.replace(MIXED, dtype=dtype), None)

    assert MIXED.layer_types == ("sliding_attention",) * 3 + ("full_attention",)
    assert groups("cpu", "bfloat16") == [range(3), range(3, 4)]
    for other in (("cpu", "float32"), ("tpu", "bfloat16"), ("gpu", "bfloat16")):
        assert groups(*other) == [range(layer, layer + 1) for layer in range(4)]


@pytest.mark.parametrize("in_loops", [False, True])
def test_decoding_reads_each_layers_own_window(in_loops, monkeypatch):
    model, variables, columns = Transformer(MIXED), random_variables(config=MIXED), batch()
    groups = decoding.layer_groups(dataclasses.replace(MIXED, dtype="bfloat16" if in_loops else "float32"), None)
    monkeypatch.setattr(decoding, "layer_groups", lambda config, layout: groups)
    forward = jax.jit(lambda *arguments: decoding.forward(*arguments), static_argnums=0)
    weights, cache = decoding.prepare(model, variables), decoding.init_cache(MIXED, 1, 12, 8, None)
    table = jnp.arange(12).reshape(2, 6)
    hidden, cache = forward(model, weights, cache, columns["tokens"][:, :30], columns["positions"][:, :30], table)
    for at in range(30, 34):
        last, cache = forward(model, weights, cache, columns["tokens"][:, at:at + 1], jnp.full((2, 1), at), table)
        hidden = jnp.concatenate([hidden, last], axis=1)
    whole = model.apply(variables, *(columns[name][:, :34] for name in ("tokens", "positions", "segment_ids")))
    np.testing.assert_allclose(hidden, whole, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["xla", "flash"])
def test_layers_that_differ_on_a_mesh(kernel, tmp_path, monkeypatch):
    make = splash_attention_kernel.make_splash_mqa_single_device
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mqa_single_device",
                        functools.partial(make, interpret=True))
    layout = make_layout(MeshConfig(data=2, fsdp=2, tensor=2))
    opened = open_pretrained(str(cases.write(tmp_path / "model", "qwen3, layer_types")))
    model, variables = opened.load(layout, attention=kernel)
    rows = jax.tree.map(lambda column: jnp.concatenate([column, column]), batch())
    found = jitted_score(model, variables, rows).logps
    np.testing.assert_allclose(found[:2], EXPECTED["qwen3, layer_types"], atol=2e-5)


def test_one_layer_is_compiled_for_layers_that_differ():
    text = jax.jit(lambda variables: score(Transformer(MIXED), variables, batch()).logps).lower(
        random_variables(config=MIXED)).as_text()
    same = dataclasses.replace(MIXED, layer_types=None)
    alike = jax.jit(lambda variables: score(Transformer(same), variables, batch()).logps).lower(
        random_variables(config=MIXED)).as_text()
    assert text.count("stablehlo.case") == alike.count("stablehlo.case") + 1
    assert text.count("tensor<32x48xf32>") == alike.count("tensor<32x48xf32>")  # the mlp stands there once


def test_a_head_that_differs_is_told(folder, capsys):
    opened = open_pretrained(str(folder("qwen2, tied in config, a head of its own")))
    assert not opened.config.tie_embeddings
    assert "they are not tied here, as in transformers" in capsys.readouterr().err
    assert open_pretrained(str(folder("qwen2, tied, the same head beside"))).config.tie_embeddings
    assert capsys.readouterr().err == ""


def test_a_single_file_beside_an_index_is_read_and_told(folder, capsys):
    where = folder("llama, linear")
    expected = logps(where)
    old = {key: value * 2 for key, value in load_file(where / "model.safetensors").items()}
    save_file(old, where / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (where / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(logps(where), expected)
    assert "model.safetensors is read, as transformers does, and not the 1 files" in capsys.readouterr().err


def test_the_window_of_a_layer():
    config = ModelConfig(8, 8, 8, 2, 1, 1, 8, 8, sliding_window=3, layer_types=(cases.FULL, cases.SLIDING))
    assert [config.window_of(layer) for layer in range(2)] == [None, 3]
    assert dataclasses.replace(config, layer_types=None).window_of(0) == 3


def test_truncate_of_null_is_false_as_in_transformers():
    """Other keys of null say nothing."""
    rope = cases.YARN | {"truncate": None, "beta_fast": None}
    config = cases.CONFIGS["qwen3, yarn"]
    assert from_hf(config | {"rope_parameters": rope}, "here") == from_hf(
        config | {"rope_parameters": cases.YARN | {"truncate": False}}, "here")
    linear = cases.CONFIGS["llama, linear"]
    assert from_hf(linear | {"rope_parameters": linear["rope_parameters"] | {"truncate": None}}, "here") == from_hf(
        linear, "here")
