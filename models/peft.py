"""PEFT LoRA adapters, in and out."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from errors import InputError
from models.config import ModelConfig
from models.lora import LoRAConfig
from models.safetensors_weights import read_json
from models.weights import LINEAR_NAMES
from sharding.rules import path_name

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_OURS = {name.split(".")[1]: ours for ours, name in LINEAR_NAMES.items()}  # q_proj -> q
_PLAIN = {"bias": "none", "use_dora": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
          "layers_to_transform": None, "fan_in_fan_out": False, "trainable_token_indices": None}


def is_adapter(folder: Path) -> bool:
    return (folder / _CONFIG).exists()


def write_adapter(folder: Path, lora: dict[str, Any], config: LoRAConfig, base: str) -> None:
    """Writes the `lora` collection (unboxed) as an adapter that peft loads with the same logits."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(lora):
        *_, module, kind = path_name(path).split("/")
        for layer, matrix in enumerate(np.asarray(jax.device_get(leaf), np.float32)):
            tensors[_tensor_name(layer, module, kind)] = np.ascontiguousarray(matrix.T)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": config.rank,
                "lora_alpha": config.alpha, "lora_dropout": config.dropout, "bias": "none", "inference_mode": True,
                "target_modules": [LINEAR_NAMES[name].split(".")[1] for name in config.targets]}
    (folder / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def _tensor_name(layer: int, module: str, kind: str) -> str:
    return f"base_model.model.model.layers.{layer}.{LINEAR_NAMES[module]}.lora_{kind.upper()}.weight"


def read_adapter_config(folder: Path) -> tuple[LoRAConfig, str]:
    """Our LoRAConfig and the base model's reference. Raises InputError for what Temper does not compute."""
    found, where = read_json(folder / _CONFIG), folder / _CONFIG
    if found.get("peft_type") != "LORA":
        raise InputError(f"{where}: peft_type {found.get('peft_type')!r} is not supported; only LORA is")
    odd = [key for key, plain in _PLAIN.items() if found.get(key, plain) not in (plain, None)]
    if odd:
        raise InputError(f"{where}: {odd[0]}={found[odd[0]]!r} is not supported; merge the adapter with peft first")
    targets = found.get("target_modules")
    unknown = [name for name in targets if name not in _OURS] if isinstance(targets, list) else [targets]
    if unknown:
        raise InputError(f"{where}: target module {unknown[0]!r} is not supported; only {', '.join(_OURS)} are")
    missing = [key for key in ("r", "lora_alpha", "base_model_name_or_path") if not found.get(key)]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing; add it")
    rank = found["r"]
    alpha = found["lora_alpha"] * (rank**0.5 if found.get("use_rslora") else 1.0)
    names = tuple(name for name in LINEAR_NAMES if LINEAR_NAMES[name].split(".")[1] in targets)
    return LoRAConfig(rank, alpha, found.get("lora_dropout", 0.0), names), found["base_model_name_or_path"]


def read_adapter(folder: Path, config: LoRAConfig, model: ModelConfig) -> dict[str, Any]:
    """The adapter's matrices as a `lora` collection of numpy arrays, A [L, in, R] and B [L, R, out]."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / _WEIGHTS).exists():
        raise InputError(f"{folder}: {_WEIGHTS} is missing (pickled adapters are never loaded)")
    try:
        tensors = load_file(folder / _WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / _WEIGHTS}: not a readable safetensors file ({error}); fetch it again") from None
    used = {_tensor_name(layer, module, kind) for module in config.targets for kind in "ab"
            for layer in range(model.num_layers)}
    if rest := sorted(tensors.keys() - used):
        raise InputError(f"{folder / _WEIGHTS}: weight {rest[0]} (one of {len(rest)}) has no place in this model")
    parts: dict[str, Any] = {"attn": {}, "mlp": {}}
    for module in config.targets:
        part = "attn" if LINEAR_NAMES[module].startswith("self_attn") else "mlp"
        parts[part][module] = {kind: _stack(tensors, module, kind, model.num_layers, folder) for kind in "ab"}
    return {"layers": {name: part for name, part in parts.items() if part}}


def _stack(tensors: dict[str, np.ndarray], module: str, kind: str, layers: int, folder: Path) -> np.ndarray:
    names = [_tensor_name(layer, module, kind) for layer in range(layers)]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(f"{folder / _WEIGHTS}: weight {missing[0]} is missing")
    stacked = np.stack([tensors[name].T.astype(np.float32) for name in names])
    if not np.isfinite(stacked).all():
        raise InputError(f"{folder / _WEIGHTS}: {module}'s lora_{kind.upper()} holds NaN or infinite values")
    return stacked
