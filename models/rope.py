"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), half-split layout, with Llama 3's scaling."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.config import ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig) -> Float[np.ndarray, "half"]:
    """theta^(-2i/H) for i in [0, H/2), stretched where Llama 3's scaling says so; float32."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    return frequencies if config.rope_scaling is None else _llama3(frequencies, config.rope_scaling)


def _llama3(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Wavelengths over `original / low_freq_factor` are stretched, under `original / high_freq_factor` kept, and
    in between interpolated (Llama 3 report, arXiv:2407.21783, and Meta's reference code)."""
    turns = scaling.original_max_length * frequencies / (2 * np.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = np.clip(share, 0.0, 1.0)
    return (share * frequencies + (1 - share) * frequencies / scaling.factor).astype(np.float32)


def cos_sin(config: ModelConfig, positions: Int[Array, "B T"]) -> tuple[Float[Array, "B T half"], ...]:
    """Cosine and sine of every position's angles, float32; the same for all layers, so computed once."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T heads H"], cos: Float[Array, "B T half"], sin: Float[Array, "B T half"]
) -> Float[Array, "B T heads H"]:
    """Rotates the pairs (x_i, x_{i + H/2}) by the angle of their position; float32 inside, dtype kept."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
