"""How much memory a gradient takes besides weights: an estimate, by what models/remat.py and the kernels keep."""

import numpy as np

from models.attention_kernels import KEPT_SCORES, MAX_PARTS, QUERY_BLOCK
from models.config import ModelConfig


def bytes_of_position(config: ModelConfig, length: int) -> int:
    """Bytes that one position of a row of `length` takes: what all layers keep of it for the backward pass, and what a
    layer that is computed again has of it meanwhile."""
    kept = _kept(config, length)
    again = 0 if config.remat == "none" else _kept_by_none(config, length)
    scores = 3 * 4 * config.num_heads * min(length, QUERY_BLOCK)  # float32, of one layer: themselves and two gradients
    return config.num_layers * kept + again + scores


def _kept(config: ModelConfig, length: int) -> int:
    """Bytes of a position that a layer keeps."""
    width, stream, heads, kv_heads = _sizes(config)
    linear = heads + 2 * kv_heads + 2 * config.embed_dim + 2 * config.mlp_dim
    return {"none": _kept_by_none(config, length), "dots": stream + width * (linear + heads), "full": stream,
            "attention": stream + width * heads, "offload": stream + width * heads}[config.remat]


def _kept_by_none(config: ModelConfig, length: int) -> int:
    """The residual stream before either norm and what comes out of it, q, k and v (before their norms, too), what
    attention gives, gate, up, what down reads, and, of short rows, attention's weights."""
    width, stream, heads, kv_heads = _sizes(config)
    weights = config.num_heads * length if _keeps_weights(config, length) else 0
    projected = (2 if config.qk_norm else 1) * (heads + kv_heads) + kv_heads
    return 2 * stream + width * (2 * config.embed_dim + projected + heads + 3 * config.mlp_dim + weights)


def _keeps_weights(config: ModelConfig, length: int) -> bool:
    """Whether the xla kernel keeps attention's weights, of a longer row if only where it is the one row."""
    scores = config.num_heads * length**2
    return length <= QUERY_BLOCK or length <= MAX_PARTS * QUERY_BLOCK and scores <= KEPT_SCORES


def _sizes(config: ModelConfig) -> tuple[int, int, int, int]:
    """Bytes of a number, bytes of the float32 residual stream, features of all heads, and of all kv heads."""
    width = 2 if config.dtype == "bfloat16" else np.dtype(config.dtype).itemsize
    return width, 4 * config.embed_dim, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
