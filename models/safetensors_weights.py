"""Hugging Face folders: safetensors, single or sharded, in and out. No pickle is ever opened."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from errors import InputError
from models.config import ModelConfig
from models.hf_config import to_hf
from models.weights import Index, named_tensors, stored_shapes
from sharding.hosts import is_main, warn

SHARD_BYTES = 5 * 10**9
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F64", "F32", "F16", "BF16"}


class SafetensorsWeights:
    """All *.safetensors of a folder; an index file, where there is one, says which tensors must be there."""

    def __init__(self, folder: Path):
        from safetensors import SafetensorError, safe_open

        self.where = str(folder)
        self._files: dict[str, Any] = {}
        for file in _weight_files(folder):
            try:
                opened = safe_open(file, framework="np")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{file}: not a readable safetensors file ({error}); fetch it again") from None
            self._files |= dict.fromkeys(opened.keys(), opened)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._files.items()}

    def read(self, name: str, index: Index) -> np.ndarray:
        tensor = self._files[name].get_slice(name)
        if tensor.get_dtype() not in _FLOATS:
            raise InputError(f"{self.where}: weight {name} has dtype {tensor.get_dtype()}; "
                             f"only {', '.join(sorted(_FLOATS))} are read")
        return tensor[index]


def _weight_files(folder: Path) -> list[Path]:
    names = _indexed(folder / INDEX) or {SINGLE}
    if SINGLE not in names and (folder / SINGLE).exists():
        warn(f"{folder}: {SINGLE} is read, as transformers does, and not the {len(names)} files that "
             f"{INDEX} lists beside it; take away the ones that are out of date")
        names = {SINGLE}
    files = sorted(folder / name for name in names)
    missing = [file.name for file in files if not file.exists()]
    if not missing:
        return files
    pickles = "; its weights are pickles, which are never loaded: convert them to safetensors" if any(
        folder.glob("*.bin")) else "; is the download complete?"
    raise InputError(f"{folder}: {', '.join(missing)} is missing{pickles}")


def _indexed(index: Path) -> set[str]:
    """The files that an index lists; none where there is no index."""
    if not index.exists():
        return set()
    weight_map = read_json(index).get("weight_map")
    if not weight_map or not isinstance(weight_map, dict):
        raise InputError(f"{index}: has no weight_map; fetch it again")
    return set(weight_map.values())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object was expected, not {type(value).__name__}")
    return value


def write_hf_folder(folder: Path, params: dict[str, Any], config: ModelConfig, dtype: str,
                    shard_bytes: int = SHARD_BYTES, token_ids: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Writes config.json and safetensors that transformers loads with the same logits, or, a reward model, with the
    same rewards; with `token_ids` (eos_token_id and its like) in it and in generation_config.json, so that what loads
    the model knows where an answer ends.

    Of several processes, all call it and the main one writes.
    """
    write_weights(folder, params, dtype, shard_bytes)
    if not is_main():
        return
    write_json(folder / "config.json", to_hf(config, dtype) | dict(token_ids))
    if token_ids and not config.reward_head:
        write_json(folder / "generation_config.json", dict(token_ids))


def write_weights(folder: Path, params: dict[str, Any], dtype: str, shard_bytes: int) -> None:
    """model.safetensors, or files of at most `shard_bytes` (one tensor at the least) and their index.

    The host holds one file's tensors at a time.
    """
    shapes = stored_shapes(params)
    sizes = {name: math.prod(shape) * jnp.dtype(dtype).itemsize for name, shape in shapes.items()}
    files = _files(sizes, shard_bytes)
    last = {file: name for name, file in files.items()}
    shard: dict[str, np.ndarray] = {}
    for name, tensor in named_tensors(params, jnp.dtype(dtype)):
        if is_main():
            shard[name] = tensor
        if is_main() and last[files[name]] == name:
            save_tensors(folder / files[name], shard)
            shard = {}
    if is_main() and len(last) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files})


def _files(sizes: dict[str, int], shard_bytes: int) -> dict[str, str]:
    """Weight -> the file that it goes to, as transformers names them; a new one where the last would grow too large."""
    numbers, number, filled = {}, 0, 0
    for name, size in sizes.items():
        if filled and filled + size > shard_bytes:
            number, filled = number + 1, 0
        numbers[name], filled = number, filled + size
    if number == 0:
        return dict.fromkeys(sizes, SINGLE)
    return {name: f"model-{at + 1:05d}-of-{number + 1:05d}.safetensors" for name, at in numbers.items()}


def save_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file, readable by whom the umask lets, as its neighbours are: the library's own is the user's."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON object, readable by people."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
