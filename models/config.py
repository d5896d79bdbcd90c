"""Architecture of a decoder transformer, and its presets by name."""

import dataclasses
from typing import Any, Literal

from models.settings import Remat

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Hugging Face `model_type`s that the one transformer covers by configuration"""


SLIDING, FULL = "sliding_attention", "full_attention"
"""kinds of layers, as transformers spells them"""


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's frequency scaling: long wavelengths are stretched by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_length: int


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595): all wavelengths are stretched by `factor`."""

    factor: float


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): wavelengths that turn fewer than `beta_slow` times in the original
    length are stretched by `factor`, those of more than `beta_fast` turns kept; all else is interpolated."""

    factor: float
    original_max_length: int
    attention_factor: float
    """cosine and sine are multiplied by this"""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """the bounds are rounded to whole dimensions"""


RopeScaling = Llama3Scaling | LinearScaling | YarnScaling


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What the transformer is (up to `family`) and how it computes (from `dtype` on)."""

    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    o_bias: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    """SLIDING or FULL of every layer, where not all have the window; None where all are alike"""
    reward_head: bool = False
    """a reward model: a scalar head in place of the vocabulary projection (models/heads.py)"""
    family: str = "llama"

    dtype: str = "float32"
    """of matmuls; softmax, norms and log-probabilities are float32 always"""
    param_dtype: str = "float32"
    """of the stored weights; LoRA's own are float32 always"""
    remat: Remat = "none"
    """what the backward pass computes again"""
    attention: Literal["auto", "xla", "cudnn", "flash"] = "auto"
    """the kernel; auto picks by platform"""

    def window_of(self, layer: int) -> int | None:
        """The sliding window of one layer."""
        return self.sliding_window if self.layer_types is None or self.layer_types[layer] == SLIDING else None


_LLAMA3_SCALING = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_length=8192)
_LLAMA32_SCALING = dataclasses.replace(_LLAMA3_SCALING, factor=32.0)


def _preset(family: str, vocab: int, embed: int, mlp: int, layers: int, heads: int, kv_heads: int, head_dim: int,
            max_length: int, **rest: Any) -> ModelConfig:
    return ModelConfig(vocab, embed, mlp, layers, heads, kv_heads, head_dim, max_length, family=family, **rest)


def _smollm2(*sizes: int) -> ModelConfig:
    return _preset("llama", 49152, *sizes, 8192, rope_theta=100_000.0, tie_embeddings=True)


def _qwen25(vocab: int, *sizes: int, tie: bool) -> ModelConfig:
    return _preset("qwen2", vocab, *sizes, 32768, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True, tie_embeddings=tie)


def _qwen3(*sizes: int, tie: bool) -> ModelConfig:
    return _preset("qwen3", 151936, *sizes, 40960, rope_theta=1e6, norm_eps=1e-6, qk_norm=True, tie_embeddings=tie)


def _llama3(*sizes: int, tie: bool, scaling: RopeScaling) -> ModelConfig:
    return _preset("llama", 128256, *sizes, 131072, rope_theta=500_000.0, rope_scaling=scaling, tie_embeddings=tie)


#: embed, mlp, layers, heads, kv heads, head_dim
PRESETS: dict[str, ModelConfig] = {
    "smollm2-135m": _smollm2(576, 1536, 30, 9, 3, 64),
    "smollm2-360m": _smollm2(960, 2560, 32, 15, 5, 64),
    "qwen2.5-0.5b": _qwen25(151936, 896, 4864, 24, 14, 2, 64, tie=True),
    "qwen2.5-1.5b": _qwen25(151936, 1536, 8960, 28, 12, 2, 128, tie=True),
    "qwen2.5-7b": _qwen25(152064, 3584, 18944, 28, 28, 4, 128, tie=False),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8, 128, tie=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, 8, 128, tie=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, 8, 128, tie=False),
    "llama3.2-1b": _llama3(2048, 8192, 16, 32, 8, 64, tie=True, scaling=_LLAMA32_SCALING),
    "llama3.1-8b": _llama3(4096, 14336, 32, 32, 8, 128, tie=False, scaling=_LLAMA3_SCALING),
    "llama3.1-70b": _llama3(8192, 28672, 80, 64, 8, 128, tie=False, scaling=_LLAMA3_SCALING),
}

HUB_IDS: dict[str, str] = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B-Base",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B-Base",
    "qwen3-8b": "Qwen/Qwen3-8B-Base",
    "llama3.2-1b": "meta-llama/Llama-3.2-1B",
    "llama3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama3.1-70b": "meta-llama/Llama-3.1-70B",
}
"""where `--model PRESET` finds the pretrained weights of a preset"""
