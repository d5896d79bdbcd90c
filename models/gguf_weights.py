"""GGUF files: configuration and weights, dequantised row by row with the `gguf` package's own code.

llama.cpp stores the rows of a llama's q and k for interleaved RoPE; they are put back into half-split order here.
The tokenizer inside the file is read by data/gguf_tokenizer.py.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError
from models.config import Llama3Scaling, ModelConfig
from models.rope import inverse_frequencies
from models.weights import LINEAR_NAMES, Index

QUANTISATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
_LINEARS = {"attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o", "ffn_gate": "gate", "ffn_up": "up",
            "ffn_down": "down"}
_OTHERS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q_norm": "self_attn.q_norm",
           "attn_k_norm": "self_attn.k_norm"}
_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight"}
_ROPE_FACTORS = "rope_freqs.weight"
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")


def open_gguf(path: Path) -> Any:
    """The file's reader. Raises InputError where it is no GGUF file."""
    import gguf

    class Reader(gguf.GGUFReader):
        """The library's own slices its data for each token and merge of the tokenizer, which takes four times as long
        of a memmap as of a plain array."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    try:
        return Reader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"{path}: not a readable GGUF file ({error}); fetch it again") from None


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; unknown names stay as they are."""
    if name in _TOP or not name.startswith("blk."):
        return _TOP.get(name, name)
    _, layer, module, kind = name.split(".")
    if module in _LINEARS:
        return f"model.layers.{layer}.{LINEAR_NAMES[_LINEARS[module]]}.{kind}"
    return f"model.layers.{layer}.{_OTHERS[module]}.{kind}" if module in _OTHERS else name


def parts(path: Path) -> list[Path]:
    """All the files of a GGUF that is split in parts, the first first; `path` may be any of them, or whole.

    Raises InputError for a part that is missing.
    """
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    count = int(named["count"])
    files = [path.with_name(f"{named['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise InputError(f"{path}: {missing[0]} is missing, one of {count} parts; fetch it, too")
    return files


class GGUFWeights:
    """Tensors of a GGUF file, or of all its parts, under Hugging Face names and in Hugging Face row order."""

    def __init__(self, path: Path):
        files = parts(path)
        readers = [open_gguf(file) for file in files]
        self.first = files[0]
        """the file with the metadata"""
        self.where = str(path)
        tensors = [tensor for reader in readers for tensor in reader.tensors]
        _check_count(readers[0], len(files), len(tensors), self.where)
        self.config = read_config(readers[0], tensors, self.where)
        self._tensors = {hf_name(t.name): t for t in tensors if t.name != _ROPE_FACTORS}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(int(size) for size in t.shape[::-1]) for name, t in self._tensors.items()}

    def read(self, name: str, index: Index) -> np.ndarray:
        import gguf

        tensor = self._tensors[name]
        if tensor.tensor_type.name not in QUANTISATIONS:
            raise InputError(f"{self.where}: weight {name} is quantised as {tensor.tensor_type.name}; "
                             f"{', '.join(QUANTISATIONS)} are read")
        rows = self._row_order(name, len(tensor.data))[index[0]]
        return gguf.quants.dequantize(tensor.data[rows], tensor.tensor_type)[(slice(None), *index[1:])]

    def _row_order(self, name: str, rows: int) -> np.ndarray:
        """File row of each of our rows: [heads, H/2, 2] in the file is [heads, 2, H/2] here, for q and k of a llama."""
        order = np.arange(rows)
        if self.config.family != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
            return order
        return order.reshape(-1, self.config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _check_count(reader: Any, files: int, tensors: int, where: str) -> None:
    """Raises InputError for a part under a name that does not tell, and for parts that do not belong together."""
    count = _field(reader, "split.count", where, 1)
    if count != files and count > 1:
        raise InputError(f"{where}: is one of {count} parts; give them the names that llama.cpp gave them "
                         f"(NAME-00001-of-{count:05d}.gguf), in one folder")
    needed = _field(reader, "split.tensors.count", where, tensors)
    if needed != tensors:
        raise InputError(f"{where}: its parts have {tensors} weights, the first says {needed}; fetch them again")


def read_config(reader: Any, tensors: list[Any], where: str) -> ModelConfig:
    """The architecture in a GGUF file's metadata. Raises InputError for one that Temper does not compute."""
    family = _field(reader, "general.architecture", where)
    if family not in ("llama", "qwen2", "qwen3"):
        raise InputError(f"{where}: unknown architecture {family!r}; Temper reads GGUF files of llama, qwen2, qwen3")

    _check_keys(reader, family, where)

    def get(key: str, default: Any = None) -> Any:
        return _field(reader, f"{family}.{key}", where, default)

    scaling = get("rope.scaling.type", "none")
    if scaling != "none":
        raise InputError(f"{where}: rope scaling {scaling!r} is not supported; only Llama 3's is")
    heads, embed = get("attention.head_count"), get("embedding_length")
    names = {tensor.name for tensor in tensors}
    vocab = next((int(t.shape[1]) for t in tensors if t.name == "token_embd.weight"), 0)
    config = ModelConfig(
        vocab_size=vocab, embed_dim=embed, mlp_dim=get("feed_forward_length"), num_layers=get("block_count"),
        num_heads=heads, num_kv_heads=get("attention.head_count_kv", heads),
        head_dim=get("attention.key_length", embed // heads), max_length=get("context_length"),
        rope_theta=float(get("rope.freq_base", 10_000.0)), norm_eps=round(get("attention.layer_norm_rms_epsilon"), 12),
        tie_embeddings="output.weight" not in names, qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
        sliding_window=get("attention.sliding_window", 0) or None, family=family)
    if get("rope.dimension_count", config.head_dim) != config.head_dim:
        raise InputError(f"{where}: rotary positions on part of a head are not supported")
    factors = [t.data for t in tensors if t.name == _ROPE_FACTORS]
    return _with_scaling(config, np.asarray(factors[0]), where) if factors else config


_KEYS = {
    "attention.head_count", "embedding_length", "feed_forward_length", "block_count", "attention.head_count_kv",
    "attention.key_length", "context_length", "rope.freq_base", "attention.layer_norm_rms_epsilon",
    "attention.sliding_window", "rope.dimension_count", "rope.scaling.type"}
_HARMLESS = {
    "attention.value_length", "vocab_size", "expert_count", "expert_used_count", "leading_dense_block_count"}
"""metadata of the architecture that changes nothing: the weights' own shapes tell"""


def _check_keys(reader: Any, family: str, where: str) -> None:
    """Raises InputError for a number of the architecture that is not read; one that is 0 asks for nothing."""
    for key, field in reader.fields.items():
        name = key.removeprefix(f"{family}.")
        if name != key and name not in _KEYS | _HARMLESS and field.contents():
            raise InputError(f"{where}: metadata {key} ({field.contents()}) is not known; Temper would compute "
                             f"something else than the file asks for")


def _field(reader: Any, key: str, where: str, default: Any = None) -> Any:
    field = reader.get_field(key)
    if field is None and default is None:
        raise InputError(f"{where}: metadata {key} is missing; this is no GGUF file of a language model")
    return default if field is None else field.contents()


def _with_scaling(config: ModelConfig, factors: np.ndarray, where: str) -> ModelConfig:
    """Llama 3's scaling, which GGUF keeps as a divisor of every frequency; checked against the formula."""
    scaling = Llama3Scaling(float(factors.max()), 1.0, 4.0, 8192)
    scaled = dataclasses.replace(config, rope_scaling=scaling)
    if not np.allclose(inverse_frequencies(config) / factors, inverse_frequencies(scaled), rtol=1e-4):
        raise InputError(f"{where}: its {_ROPE_FACTORS} is not Llama 3's scaling of 8,192 positions, the only one read")
    return scaled
