"""PEFT LoRA adapters, in and out.

As config.json's, keys of adapter_config.json are read, known to change no number, or refused by name.
"""

from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError, as_json
from models.config import ModelConfig
from models.lora import LoRAConfig, nested
from models.peft_targets import Place, adapted_layers, module_name
from models.safetensors_weights import read_json, save_tensors, write_json
from models.weights import LINEAR_NAMES

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"

_READ = {"peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules",
         "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"}
_HARMLESS = {"task_type", "auto_mapping", "inference_mode", "peft_version", "megatron_core", "qalora_group_size",
             "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "merge_weights"}
"""keys that change no score, whatever their value: the configurations of initialisations are void without them"""
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",), "fan_in_fan_out": (False,), "modules_to_save": ([],), "use_dora": (False,),
    "lora_bias": (False,), "ensure_weight_tying": (False,), "use_qalora": (False,), "revision": ("main",),
    "target_parameters": ([],), "trainable_token_indices": ([], {}), "layer_replication": ([],)}
"""keys that only these values leave without effect"""
_INITIALISATIONS = (True, False, "gaussian", "orthogonal")
"""those that leave the base model as it is"""


def is_adapter(folder: Path) -> bool:
    return (folder / _CONFIG).exists()


def write_adapter(folder: Path, lora: dict[str, Any], config: LoRAConfig, base: str) -> None:
    """Writes the `lora` collection (unboxed, on the host) as an adapter that peft loads with the same logits."""
    tensors = {}
    for module in config.targets:
        for kind, matrices in nested(lora, module).items():
            for layer, matrix in enumerate(np.asarray(matrices, np.float32)):
                tensors[_tensor_name((layer, module), kind)] = np.ascontiguousarray(matrix.T)
    save_tensors(folder / _WEIGHTS, tensors)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": config.rank,
                "lora_alpha": config.alpha, "lora_dropout": config.dropout, "bias": "none", "inference_mode": True,
                "target_modules": [LINEAR_NAMES[name].split(".")[1] for name in config.targets]}
    write_json(folder / _CONFIG, settings)


def _tensor_name(place: Place, kind: str) -> str:
    return f"base_model.model.{module_name(place)}.lora_{kind.upper()}.weight"


def read_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json, checked, without what is null. Raises InputError for what Temper does not compute."""
    where = folder / _CONFIG
    settings = {key: value for key, value in read_json(where).items() if value is not None}
    if settings.get("peft_type") != "LORA":
        raise InputError(f"{where}: peft_type {as_json(settings.get('peft_type'))} is not supported; only LORA is")
    start = settings.pop("init_lora_weights", True)
    if start not in _INITIALISATIONS:
        raise InputError(f"{where}: init_lora_weights={as_json(start)} is not supported: it changes the base model, "
                         f"which this adapter leaves out; save it with peft's "
                         f"path_initial_model_for_weight_conversion, or merge it with peft first")
    for key, value in settings.items():
        if key not in _READ | _HARMLESS | _PLAIN.keys() or key in _PLAIN and value not in _PLAIN[key]:
            raise InputError(f"{where}: {key}={as_json(value)} is not supported; merge the adapter with peft first")
    missing = [key for key in ("target_modules", "base_model_name_or_path") if not settings.get(key)]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing; add it")
    return {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0} | settings  # peft's own defaults


def read_adapter(folder: Path, settings: dict[str, Any], model: ModelConfig) -> tuple[LoRAConfig, dict[str, Any]]:
    """The adapter as a `lora` collection of numpy arrays, A [L, in, R] and B [L, R, out].

    R is the largest rank; smaller ones are filled up with zeros, and so are layers without an adapter. Where scales
    differ, they are multiplied into B. Raises InputError unless the file has what `settings` name, and nothing else.
    """
    sizes = adapted_layers(settings, model.num_layers, str(folder / _CONFIG))
    tensors = _read_tensors(folder, sizes)
    rank, scales = max(rank for rank, _ in sizes.values()), {scale for _, scale in sizes.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    targets = tuple(name for name in LINEAR_NAMES if any(name == module for _, module in sizes))
    lora: dict[str, Any] = {"layers": {}}
    for module in targets:
        own = {layer: size for (layer, name), size in sizes.items() if name == module}
        a = [(tensors[_tensor_name((layer, module), "a")].T, layer) for layer in own]
        b = [(tensors[_tensor_name((layer, module), "b")].T * np.float32(own[layer][1] / scale), layer)
             for layer in own]
        nested(lora, module).update(a=_stack(a, model.num_layers, 1, rank), b=_stack(b, model.num_layers, 0, rank))
    return LoRAConfig(rank, scale * rank, settings["lora_dropout"], targets), lora


def _read_tensors(folder: Path, sizes: dict[Place, tuple[int, float]]) -> dict[str, np.ndarray]:
    """The file's matrices in float32, by name, checked against their ranks."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    where = folder / _WEIGHTS
    if not where.exists():
        raise InputError(f"{folder}: {_WEIGHTS} is missing (pickled adapters are never loaded)")
    try:
        tensors = load_file(where)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{where}: not a readable safetensors file ({error}); fetch it again") from None
    ranks = {_tensor_name(place, kind): rank for place, (rank, _) in sizes.items() for kind in "ab"}
    if rest := sorted(tensors.keys() - ranks.keys()):
        raise InputError(f"{where}: weight {rest[0]} (one of {len(rest)}) has no place in this model and among the "
                         f"target_modules of {_CONFIG}")
    for name, rank in ranks.items():
        _check(tensors, name, rank, where)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def _check(tensors: dict[str, np.ndarray], name: str, rank: int, where: Path) -> None:
    if name not in tensors:
        raise InputError(f"{where}: weight {name} is missing")
    found = tensors[name].shape[0 if "lora_A" in name else 1]
    if found != rank:
        raise InputError(f"{where}: weight {name} has rank {found}, {_CONFIG} says {rank}")
    if not np.isfinite(tensors[name].astype(np.float32)).all():
        raise InputError(f"{where}: weight {name} holds NaN or infinite values")


def _stack(matrices: list[tuple[np.ndarray, int]], layers: int, axis: int, rank: int) -> np.ndarray:
    """[L, ...] of the matrices at their layers, filled up with zeros along `axis` to `rank`."""
    shape = list(matrices[0][0].shape)
    shape[axis] = rank
    stacked = np.zeros((layers, *shape), np.float32)
    for matrix, layer in matrices:
        stacked[layer, : matrix.shape[0], : matrix.shape[1]] = matrix
    return stacked
