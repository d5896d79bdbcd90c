"""Architecture of a decoder transformer, its presets by name, and its Hugging Face spelling."""

import dataclasses
from typing import Any, Literal

from errors import InputError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Hugging Face `model_type`s that the one transformer covers by configuration"""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency scaling: long wavelengths are stretched by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_length: int


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
    sliding_window: int | None = None
    reward_head: bool = False
    """a reward model: a scalar head in place of the vocabulary projection (models/heads.py)"""
    family: str = "llama"

    dtype: str = "float32"
    """of matmuls; softmax, norms and log-probabilities are float32 always"""
    param_dtype: str = "float32"
    """of the stored weights; LoRA's own are float32 always"""
    remat: Literal["none", "dots", "full"] = "none"
    """recomputed in the backward pass: nothing, all but matmuls, or whole layers"""
    attention: Literal["auto", "xla", "cudnn", "flash"] = "auto"
    """the kernel; auto picks by platform"""


_LLAMA3_SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_length=8192)
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


def from_hf(config: dict[str, Any], where: str) -> ModelConfig:
    """The ModelConfig of a Hugging Face config.json, in the spelling of transformers 4 or 5.

    Raises InputError, naming `where` and the key, for what the transformer does not compute.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(f"{where}: unknown architecture {family!r}; Temper computes {', '.join(FAMILIES)}")
    _refuse_unsupported(config, family, where)
    try:
        heads, embed = config["num_attention_heads"], config["hidden_size"]
        rope = _rope_parameters(config)
        return ModelConfig(
            vocab_size=config["vocab_size"], embed_dim=embed, mlp_dim=config["intermediate_size"],
            num_layers=config["num_hidden_layers"], num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads, head_dim=config.get("head_dim") or embed // heads,
            max_length=config["max_position_embeddings"], rope_theta=rope["rope_theta"],
            rope_scaling=_rope_scaling(rope, where), norm_eps=config.get("rms_norm_eps", 1e-6),
            tie_embeddings=config.get("tie_word_embeddings", False), qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3", sliding_window=_sliding_window(config, family, where),
            reward_head=_has_reward_head(config, where), family=family)
    except TypeError as error:
        raise InputError(f"{where}: a value has the wrong type ({error})") from None
    except KeyError as error:
        raise InputError(f"{where}: key {error} is missing; is it a language model's?") from None


def _refuse_unsupported(config: dict[str, Any], family: str, where: str) -> None:
    wanted = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise InputError(f"{where}: {key}={config[key]!r} is not supported for {family} (only {value!r})")


def _rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`."""
    legacy = {"rope_theta": config.get("rope_theta", 10_000.0)} | (config.get("rope_scaling") or {})
    return legacy | (config.get("rope_parameters") or {})


def _rope_scaling(rope: dict[str, Any], where: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise InputError(f"{where}: rope scaling {kind!r} is not supported; only 'llama3' and 'default' are")
    return RopeScaling(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"],
                       rope["original_max_position_embeddings"])


def _sliding_window(config: dict[str, Any], family: str, where: str) -> int | None:
    if family == "llama" or not config.get("use_sliding_window", family == "mistral"):
        return None
    if family != "mistral" and config.get("max_window_layers", 0) > 0:
        raise InputError(f"{where}: a sliding window in some layers only (max_window_layers="
                         f"{config['max_window_layers']}) is not supported; set use_sliding_window to false")
    return config.get("sliding_window")


def _has_reward_head(config: dict[str, Any], where: str) -> bool:
    """True for a classifier of one label, which transformers' reward models are."""
    if not any(name.endswith(CLASSIFIER) for name in config.get("architectures") or []):
        return False
    labels = len(config.get("id2label") or "01")  # transformers' default is two
    if labels != 1:
        raise InputError(f"{where}: a classifier of {labels} labels; a reward model has one")
    return True


CLASSIFIER = "ForSequenceClassification"

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
                  "qwen3": "Qwen3ForCausalLM"}


def to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json that transformers (4 and 5) reads back as the same architecture."""
    written = {
        "architectures": [_ARCHITECTURES[config.family]], "model_type": config.family, "torch_dtype": dtype,
        "vocab_size": config.vocab_size, "hidden_size": config.embed_dim, "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length, "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps, "tie_word_embeddings": config.tie_embeddings, "hidden_act": "silu",
        "attention_bias": False, "sliding_window": config.sliding_window,
    }
    if config.family in ("qwen2", "qwen3"):
        written |= {"use_sliding_window": config.sliding_window is not None, "max_window_layers": 0}
    if config.family == "qwen2":
        del written["attention_bias"]  # its q, k and v always have one
    if config.reward_head:
        written |= {"architectures": [_ARCHITECTURES[config.family].replace("ForCausalLM", CLASSIFIER)],
                    "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return written | {"rope_scaling": _scaling_to_hf(config.rope_scaling)}


def _scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_length}


def default_dtype() -> str:
    """Compute dtype that is fastest where this runs: bfloat16 on accelerators, and on CPUs as measured.

    XLA's CPU backend has fast bfloat16 matmuls from jax 0.11 on where the processor has instructions for them; without
    these, float32 wins (benchmarks/cpu_dtype.py).
    """
    import jax

    if jax.default_backend() != "cpu":
        return "bfloat16"
    recent = tuple(int(part) for part in jax.__version__.split(".")[:2]) >= (0, 11)
    return "bfloat16" if recent and _cpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    from pathlib import Path

    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
