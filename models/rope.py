"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), half-split layout, and their scalings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling


def inverse_frequencies(config: ModelConfig) -> Float[np.ndarray, "half"]:
    """theta^(-2i/H) for i in [0, H/2), stretched where a scaling says so; float32."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if isinstance(scaling, LinearScaling):
        return (frequencies / scaling.factor).astype(np.float32)
    if isinstance(scaling, Llama3Scaling):
        return _llama3(frequencies, scaling)
    return _yarn(frequencies, scaling, config)


def _llama3(frequencies: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    """Wavelengths over `original / low_freq_factor` are stretched, under `original / high_freq_factor` kept, and
    in between interpolated (Llama 3 report, arXiv:2407.21783, and Meta's reference code)."""
    turns = scaling.original_max_length * frequencies / (2 * np.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = np.clip(share, 0.0, 1.0)
    return (share * frequencies + (1 - share) * frequencies / scaling.factor).astype(np.float32)


def _yarn(frequencies: np.ndarray, scaling: YarnScaling, config: ModelConfig) -> np.ndarray:
    """Frequency i is kept below `low`, stretched above `high`, and in between interpolated; i turns n times within the
    original length at H ln(original / (2 pi n)) / (2 ln theta)."""
    def index(turns: float) -> float:
        wavelengths = scaling.original_max_length / (2 * math.pi * turns)
        return config.head_dim * math.log(wavelengths) / (2 * math.log(config.rope_theta))

    low, high = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    high = high + 0.001 if low == high else high
    stretched = np.clip((np.arange(len(frequencies), dtype=np.float32) - low) / (high - low), 0, 1)
    return (frequencies / scaling.factor * stretched + frequencies * (1 - stretched)).astype(np.float32)


def cos_sin(config: ModelConfig, positions: Int[Array, "B T"]) -> tuple[Float[Array, "B T half"], ...]:
    """Cosine and sine of every position's angles, float32; the same for all layers, so computed once."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if isinstance(config.rope_scaling, YarnScaling):
        return cos * config.rope_scaling.attention_factor, sin * config.rope_scaling.attention_factor
    return cos, sin


def rotate(
    x: Float[Array, "B T heads H"], cos: Float[Array, "B T half"], sin: Float[Array, "B T half"]
) -> Float[Array, "B T heads H"]:
    """Rotates the pairs (x_i, x_{i + H/2}) by the angle of their position; float32 inside, dtype kept."""
    return jax.lax.platform_dependent(x, cos[:, :, None], sin[:, :, None], tpu=_by_matmul, default=_by_halves)


def _by_halves(x: Array, cos: Array, sin: Array) -> Array:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _by_matmul(x: Array, cos: Array, sin: Array) -> Array:
    """TPUs exchange halves by a matmul with zeros and ones: half a register's width is slow there. It is exact of
    bfloat16, and of float32 at the highest precision, which --dtype float32 asks for (cli.checks.compute_in); what it
    gives back, the cotangent times sin, bfloat16 rounds once more."""
    exchange = jnp.asarray(np.roll(np.eye(x.shape[-1]), x.shape[-1] // 2, axis=0), jnp.float32)
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    wide = x.astype(jnp.float32)
    return (wide * cos + jnp.einsum("btnh,hg->btng", wide, exchange) * sin).astype(x.dtype)
