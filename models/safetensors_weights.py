"""Hugging Face folders: safetensors, single or sharded, in and out. No pickle is ever opened."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from errors import InputError
from models.config import ModelConfig
from models.hf_config import to_hf
from models.weights import Index, named_tensors
from sharding.hosts import warn

SHARD_BYTES = 5 * 10**9
SINGLE = "model.safetensors"
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
    names = _indexed(folder / "model.safetensors.index.json") or {SINGLE}
    if SINGLE not in names and (folder / SINGLE).exists():
        warn(f"{folder}: {SINGLE} is read, as transformers does, and not the {len(names)} files that "
             f"model.safetensors.index.json lists beside it; take away the ones that are out of date")
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
                    shard_bytes: int = SHARD_BYTES, pad_token_id: int | None = None) -> None:
    """Writes config.json and safetensors, a new file every `shard_bytes`, that transformers loads with the same logits
    (or, a reward model, with the same rewards: it looks for the last token that is not `pad_token_id`).

    The host holds one file's tensors at a time.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    written = to_hf(config, dtype) | ({} if pad_token_id is None else {"pad_token_id": pad_token_id})
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(_shards(named_tensors(params, jnp.dtype(dtype)), shard_bytes), 1):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        if shard and sum(each.nbytes for each in shard.values()) + tensor.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard
