"""Named weights of other ecosystems into our parameter tree, straight to their shards, and back.

The common language is Hugging Face's: tensor names such as `model.layers.3.self_attn.q_proj.weight`, linear weights
[out, in]. Ours are [in, out], those of blocks stacked to [L, in, out].
"""

import functools
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np

from errors import InputError
from models.config import ModelConfig
from models.transformer import Transformer, init_variables
from sharding.layout import RULES, Layout, path_name

Index = tuple[slice, ...]


@runtime_checkable
class Weights(Protocol):
    """Tensors under Hugging Face names, read slice by slice."""

    where: str
    """file or folder, for messages"""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape by name."""

    def read(self, name: str, index: Index) -> np.ndarray:
        """One slice of one tensor."""


LINEAR_NAMES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}
_NORM_NAMES = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "q_norm": "self_attn.q_norm",
               "k_norm": "self_attn.k_norm"}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TOP_NAMES = {"embedding": EMBEDDING, "final_norm/scale": "model.norm.weight", "lm_head": HEAD,
              "reward_head": "score.weight"}


def hf_name(path: str) -> str:
    """The Hugging Face name of a parameter path; `{}` stands for the layer where it is stacked."""
    if path in _TOP_NAMES:
        return _TOP_NAMES[path]
    *_, module, kind = path.split("/")
    if kind == "scale":
        return f"model.layers.{{}}.{_NORM_NAMES[module]}.weight"
    return f"model.layers.{{}}.{LINEAR_NAMES[module]}.{'weight' if kind == 'kernel' else 'bias'}"


def is_transposed(path: str) -> bool:
    """True where Hugging Face keeps [out, in]."""
    return path.endswith("kernel") or path in ("lm_head", "reward_head")


def abstract_params(config: ModelConfig) -> dict[str, Any]:
    """Shapes, dtypes and axis names (boxed) of `params`."""
    return jax.eval_shape(lambda: init_variables(Transformer(config), jax.random.key(0)))["params"]


def params_shardings(config: ModelConfig, layout: Layout) -> Any:
    """Of `params`. Raises InputError where the layout's rules do not fit them, or the activations of the model."""
    boxed = abstract_params(config)
    shardings = layout.tree_shardings(boxed)
    if layout.rules != tuple(RULES.items()):  # the table as it stands fits
        tokens = jax.ShapeDtypeStruct((1, 1), "int32")
        jax.eval_shape(Transformer(config, layout=layout).apply, {"params": nn.meta.unbox(boxed)}, *[tokens] * 3)
    return shardings


def load_params(weights: Weights, config: ModelConfig, layout: Layout) -> dict[str, Any]:
    """`params`, in config.param_dtype, each device's shard read and converted on its own.

    Raises InputError for a tensor that is missing, too many, of the wrong shape, or not finite.
    """
    boxed = abstract_params(config)
    check_names(weights, boxed)
    shardings = params_shardings(config, layout)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, sharding: _load_one(weights, path_name(path), leaf, sharding),
        nn.meta.unbox(boxed), shardings)


def _load_one(weights: Weights, path: str, leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
    """Reads one slice at a time, for all the devices that hold it, so that the host never holds the whole."""
    holders: dict[str, tuple[Index, list[jax.Device]]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        holders.setdefault(str(index), (index, []))[1].append(device)
    shards = []
    for index, devices in holders.values():
        value = read_param(weights, path, leaf, index)
        shards += [jax.block_until_ready(jax.device_put(value, device)) for device in devices]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)


def read_param(weights: Weights, path: str, leaf: jax.ShapeDtypeStruct, index: Index) -> np.ndarray:
    """One slice of one parameter, in our layout and in leaf.dtype."""
    if not path.startswith("layers/"):
        return _read_tensor(weights, hf_name(path), index, is_transposed(path)).astype(leaf.dtype)
    layers = range(leaf.shape[0])[index[0]]
    shape = tuple(len(range(size)[cut]) for size, cut in zip(leaf.shape, index, strict=True))
    out = np.empty(shape, leaf.dtype)
    for row, layer in enumerate(layers):
        out[row] = _read_tensor(weights, hf_name(path).format(layer), index[1:], is_transposed(path))
    return out


def _read_tensor(weights: Weights, name: str, index: Index, transposed: bool) -> np.ndarray:
    tensor = weights.read(name, index[::-1] if transposed else index)
    if not np.isfinite(tensor).all():
        raise InputError(f"{weights.where}: weight {name} holds NaN or infinite values; the file is damaged or the "
                         f"run that wrote it diverged: use another one")
    return tensor.T if transposed else tensor


def expected_shapes(boxed: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> shape of all that the model needs."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(boxed)):
        name, stacked = path_name(path), path_name(path).startswith("layers/")
        shape = leaf.shape[1:] if stacked else leaf.shape
        shape = shape[::-1] if is_transposed(name) else shape
        layers = range(leaf.shape[0]) if stacked else [0]
        shapes |= {hf_name(name).format(layer): tuple(shape) for layer in layers}
    return shapes


def check_names(weights: Weights, boxed: dict[str, Any]) -> None:
    """Raises InputError unless the file holds what the model needs, in the right shapes, and nothing else."""
    found, needed = weights.shapes(), expected_shapes(boxed)
    for name, shape in needed.items():
        if name not in found:
            raise InputError(f"{weights.where}: weight {name} {shape} is missing; is the download complete, and "
                             f"does config.json belong to these weights?")
        if tuple(found[name]) != shape:
            raise InputError(f"{weights.where}: weight {name} has shape {tuple(found[name])}, the configuration "
                             f"needs {shape}; config.json and weights do not belong together")
    rest = [name for name in found if name not in needed and not _is_derived(name)]
    if rest:
        raise InputError(f"{weights.where}: weight {rest[0]} (one of {len(rest)}) has no place in this architecture")


def _is_derived(name: str) -> bool:
    """A copy or a constant that some files carry: a tied lm_head, RoPE frequencies."""
    return name == HEAD or name.endswith("rotary_emb.inv_freq")


def stored_shapes(params: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> shape [out, in] of every weight, in the order of named_tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        layers, shape = (leaf.shape[0], leaf.shape[1:]) if name.startswith("layers/") else (1, leaf.shape)
        shapes |= dict.fromkeys((hf_name(name).format(layer) for layer in range(layers)),
                                shape[::-1] if is_transposed(name) else shape)
    return shapes


def named_tensors(params: dict[str, Any], dtype: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(Hugging Face name, [out, in] array) of every weight, one at a time on the host; of several processes' mesh, in
    all of them, which go through it together."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        for layer in range(leaf.shape[0]) if name.startswith("layers/") else [None]:
            tensor = on_host(leaf, layer).astype(dtype)
            yield hf_name(name).format(layer), np.ascontiguousarray(tensor.T if is_transposed(name) else tensor)


def on_host(array: jax.Array, layer: int | None = None) -> np.ndarray:
    """The whole of an array, or of one of its layers, gathered where other processes hold parts of it."""
    if array.is_fully_addressable:
        return np.asarray(jax.device_get(array if layer is None else array[layer]))
    everywhere = jax.sharding.NamedSharding(array.sharding.mesh, jax.sharding.PartitionSpec())
    return np.asarray(_gather(everywhere, layer is None)(array, layer or 0))


@functools.cache
def _gather(everywhere: jax.sharding.NamedSharding, whole: bool) -> Any:
    """A compiled function of an array and the number of a layer."""
    return jax.jit(lambda array, layer: array if whole else jax.lax.dynamic_index_in_dim(array, layer, keepdims=False),
                   out_shardings=everywhere)
