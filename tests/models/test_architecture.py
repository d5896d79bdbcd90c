"""Models from random weights: their sizes, what is refused, and the same numbers on every mesh."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import one_device, padded, rows

from errors import InputError
from models.architecture import Architecture, make_config, num_params, random_params
from models.config import PRESETS
from models.hf_config import from_hf, to_hf
from models.scoring import score
from models.transformer import Transformer
from models.weights import abstract_params
from sharding.mesh import MeshConfig, make_layout

SMALL = Architecture(embed_dim=64, num_layers=2, num_heads=4)


def test_what_is_left_out_is_derived():
    config = make_config(SMALL, 1000)
    assert (config.num_kv_heads, config.head_dim, config.mlp_dim, config.max_length) == (4, 16, 192, 2048)
    assert (config.rope_theta, config.tie_embeddings, config.qk_norm) == (10_000.0, False, False)
    assert config.family == "llama"
    assert config.vocab_size == 1024
    assert make_config(SMALL, 1024).vocab_size == 1024


def test_every_size_is_taken():
    sizes = {"embed_dim": 96, "num_layers": 3, "num_heads": 6, "num_kv_heads": 2, "head_dim": 32, "mlp_dim": 200,
             "max_length": 77, "rope_theta": 5e5, "tie_embeddings": True, "qk_norm": True}
    config = make_config(Architecture(**sizes), 64)
    assert {name: getattr(config, name) for name in sizes} == sizes
    assert config.family == "qwen3"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_itself(preset):
    assert make_config(Architecture(preset), PRESETS[preset].vocab_size) == PRESETS[preset]


def test_sizes_replace_a_presets():
    config = make_config(Architecture("qwen3-0.6b", num_layers=3, tie_embeddings=False, qk_norm=False), 100)
    assert (config.num_layers, config.tie_embeddings, config.family, config.vocab_size) == (3, False, "llama", 128)
    assert (config.embed_dim, config.rope_theta) == (1024, 1e6)


@pytest.mark.parametrize("architecture", [SMALL, Architecture("qwen2.5-0.5b", num_layers=2),
                                          Architecture("llama3.2-1b", qk_norm=True)], ids=["small", "qwen2", "qk_norm"])
def test_the_exported_configuration_reads_back_as_the_same(architecture):
    config = make_config(architecture, 300)
    again = from_hf(to_hf(config, "float32"), "config.json")
    assert again == config


@pytest.mark.parametrize(("fields", "message"), [
    ({}, "architecture.embed_dim is missing: .* or a preset \\(smollm2-135m, "),
    ({"embed_dim": 64, "num_layers": 2}, "architecture.num_heads is missing"),
    ({"preset": "gpt-5"}, "architecture.preset 'gpt-5' is unknown; known are smollm2-135m, "),
    ({"embed_dim": 64, "num_layers": 2, "num_heads": 5}, "embed_dim 64 does not divide over num_heads 5"),
    ({"embed_dim": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 3}, "4 does not divide over num_kv_heads 3"),
    ({"preset": "smollm2-135m", "num_heads": 8}, "num_heads 8 does not divide over num_kv_heads 3"),
    ({"embed_dim": 60, "num_layers": 2, "num_heads": 4}, "head_dim 15 must be even"),
    ({"embed_dim": 64, "num_layers": 0, "num_heads": 4}, "num_layers 0 must be positive"),
    ({"preset": "qwen3-0.6b", "rope_theta": -1.0}, "rope_theta -1.0 must be positive"),
    ({"preset": "qwen2.5-0.5b", "qk_norm": True}, "qk_norm with a preset that has biases")], ids=str)
def test_what_makes_no_model_is_refused_in_one_line(fields, message):
    with pytest.raises(InputError, match=message) as refused:
        make_config(Architecture(**fields), 64)
    assert "\n" not in str(refused.value)


def test_num_params_counts_what_is_made():
    for tie in (True, False):
        config = make_config(dataclasses.replace(SMALL, qk_norm=True, tie_embeddings=tie), 100)
        layer = 4 * 64 * 64 + 3 * 64 * 192 + 2 * 64 + 2 * 16
        assert num_params(config) == (1 if tie else 2) * 128 * 64 + 2 * layer + 64
    assert num_params(PRESETS["smollm2-135m"]) == 134_515_008  # as its model card's checkpoint has it


def test_the_same_numbers_on_every_mesh():
    config = make_config(SMALL, 100)
    whole = random_params(config, jax.random.key(3), one_device())
    layout = make_layout(MeshConfig(1, 4, 2))
    split = random_params(config, jax.random.key(3), layout)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(split), jax.device_get(whole))
    shardings = layout.tree_shardings(abstract_params(config))
    assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), split, shardings)))
    kernel = split["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 96)


def test_another_key_gives_other_numbers_and_no_two_layers_are_alike():
    config = make_config(SMALL, 100)
    one, other = (random_params(config, jax.random.key(seed), one_device()) for seed in (0, 1))
    assert not np.array_equal(one["embedding"], other["embedding"])
    kernel = np.asarray(one["layers"]["mlp"]["gate"]["kernel"])
    assert not np.array_equal(kernel[0], kernel[1])


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_an_untrained_model_guesses_evenly(tie):
    config = make_config(Architecture(embed_dim=128, num_layers=4, num_heads=4, tie_embeddings=tie), 512)
    params = random_params(config, jax.random.key(0), one_device())
    scores = jax.jit(score, static_argnums=0)(Transformer(config), {"params": params},
                                              padded(rows([64] * 4, vocab=512)))
    assert -float(jnp.mean(scores.logps[:, 1:])) == pytest.approx(math.log(512), abs=0.15)
