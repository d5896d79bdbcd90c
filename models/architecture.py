"""A model from random weights: which one, by preset or by sizes, and its parameters made on their shards."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax

from errors import InputError
from models.config import PRESETS, ModelConfig
from models.settings import Architecture
from models.transformer import Transformer, init_variables
from models.weights import abstract_params, params_shardings
from sharding.layout import Layout

VOCAB_MULTIPLE = 64
"""the vocabulary is rounded up to a multiple of this, so that it divides over a `tensor` axis of the mesh"""


SIZES = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "max_length", "rope_theta")


def make_config(architecture: Architecture, vocab_size: int) -> ModelConfig:
    """The ModelConfig for a tokenizer of `vocab_size` tokens, rounded up to a multiple of VOCAB_MULTIPLE.

    The tokens that rounding adds are never targets; training soon makes them improbable. Its family, which says how it
    is exported, is qwen3 with qk_norm and llama without, where the preset has no other.
    Raises InputError for an unknown preset, a size that is missing, or sizes that make no model.
    """
    sizes = {name: value for name, value in dataclasses.asdict(architecture).items() if value is not None}
    for name in SIZES:
        if name in sizes and not 0 < sizes[name] < math.inf:
            raise InputError(f"architecture.{name} {sizes[name]} must be positive and finite")
    preset = sizes.pop("preset", None)
    values = _own_sizes(sizes) if preset is None else _fields(_find(preset)) | sizes
    values |= {"family": _family(values), "vocab_size": -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE}
    config = ModelConfig(**values)
    _check_heads(config)
    return config


def _find(preset: str) -> ModelConfig:
    if preset not in PRESETS:
        raise InputError(f"architecture.preset {preset!r} is unknown; known are {', '.join(PRESETS)}")
    return PRESETS[preset]


def _fields(config: ModelConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _own_sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    """`sizes` with what follows from the embedding and the heads; Llama's and Qwen 3's remaining constants."""
    missing = [name for name in ("embed_dim", "num_layers", "num_heads") if name not in sizes]
    if missing:
        raise InputError(f"architecture.{missing[0]} is missing: give embed_dim, num_layers and num_heads, "
                         f"or a preset ({', '.join(PRESETS)})")
    embed, heads = sizes["embed_dim"], sizes["num_heads"]
    if embed % heads and "head_dim" not in sizes:
        raise InputError(f"architecture.embed_dim {embed} does not divide over num_heads {heads}: "
                         f"change one of them, or give head_dim")
    derived = {"num_kv_heads": heads, "head_dim": embed // heads, "mlp_dim": -(-8 * embed // (3 * 64)) * 64,
               "max_length": 2048}
    return derived | sizes


def _family(values: dict[str, Any]) -> str:
    if values.get("qk_norm") and values.get("qkv_bias"):
        raise InputError("architecture.qk_norm with a preset that has biases (Qwen 2.5) is in no known family; "
                         "leave it out, or choose another preset")
    if values.get("qkv_bias"):
        return "qwen2"
    return "qwen3" if values.get("qk_norm") else "llama"


def _check_heads(config: ModelConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise InputError(f"architecture.num_heads {config.num_heads} does not divide over num_kv_heads "
                         f"{config.num_kv_heads}: change one of them")
    if config.head_dim % 2:
        raise InputError(f"architecture.head_dim {config.head_dim} must be even (rotary positions turn pairs): "
                         f"change it, embed_dim or num_heads")


def random_params(config: ModelConfig, key: jax.Array, layout: Layout) -> dict[str, Any]:
    """`params` of a new model, in config.param_dtype, each device's shard made where it lies.

    Matrices are normal(0, 0.02), norms one, biases zero. The numbers depend on `key` alone, not on the mesh.
    """
    make = jax.jit(lambda key: nn.meta.unbox(init_variables(Transformer(config), key)["params"]),
                   out_shardings=params_shardings(config, layout))
    return make(key)


def num_params(config: ModelConfig) -> int:
    """How many numbers `params` holds; a tied output head counts once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.meta.unbox(abstract_params(config))))
