"""Decoding against a KV cache: the transformer's own blocks, on weights that are made ready for it once.

The train step scans over stacked layers. Decoding runs them one after the other, each with weights and a cache of its
own: a stacked cache would be read and written whole for every token, where this one is updated in place.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.config import ModelConfig
from models.lora import merge
from models.paged_attention import PAGES
from models.places import Places
from models.rope import cos_sin
from models.transformer import Block, RMSNorm, Transformer
from sharding.layout import Layout, constrain

Weights = dict[str, Any]
"""embedding [V, D], lm_head [V, D] where it is not tied, final_norm, and layers: a list of L trees of Block's params"""
Cache = list[dict[str, Any]]
"""of every layer, as Block's `cache` collection: keys and values [D, K, P, S, H], P pages of S positions for each of D
shares of the rows"""


def prepare(model: Transformer, variables: dict[str, Any]) -> Weights:
    """Weights for decoding: LoRA merged in (in float32), cast to compute dtype, layers apart; norms stay as they are.

    In bfloat16 the merge rounds to what the weights can hold. Applied apart, adapters agree a little better with the
    trainer, and take an eighth more of the time of sampling on a CPU (docs/measured.md).
    """
    params = variables["params"]
    if "lora" in variables:
        params = merge(params, variables["lora"], model.lora.scale)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key == "scale" else leaf.astype(model.config.dtype), params)
    layers = [jax.tree.map(lambda leaf: leaf[layer], params["layers"])  # noqa: B023
              for layer in range(model.config.num_layers)]
    head = {} if model.config.tie_embeddings else {"lm_head": params["lm_head"].T}
    return params | head | {"layers": layers}


def init_cache(config: ModelConfig, shares: int, pages: int, size: int, layout: Layout | None = None) -> Cache:
    """Empty pages of `size` positions, in compute dtype: `pages` for each share of the rows."""
    def empty() -> Array:
        shape = shares, config.num_kv_heads, pages, size, config.head_dim
        return constrain(layout, jnp.zeros(shape, config.dtype), *PAGES)

    return [{"attn": {"keys": empty(), "values": empty()}} for _ in range(config.num_layers)]


def forward(model: Transformer, weights: Weights, cache: Cache, tokens: Int[Array, "B T"],
            positions: Int[Array, "B T"], table: Int[Array, "B M"]) -> tuple[Float[Array, "B T D"], Cache]:
    """Last hidden states, after the final norm, and the cache with what was read.

    Reads T tokens a row, at consecutive positions; each sees the row's positions up to its own, which the cache has or
    which are read with it. `table` says in which page of its share a row's positions lie. A token at position -1 is
    none.
    """
    config = model.config
    x = jnp.take(weights["embedding"], tokens, axis=0).astype(jnp.float32)
    x = constrain(model.layout, x, "batch", "residual_length", "features")
    rope, places = cos_sin(config, positions), Places(positions, (positions >= 0).astype(jnp.int32), table=table)
    updated = []
    for number, (layer, pages) in enumerate(zip(weights["layers"], cache, strict=True)):
        of_layer = dataclasses.replace(config, sliding_window=config.window_of(number))
        x, pages = _through_block(Block(of_layer, None, False, model.layout), layer, pages, x, rope, places)
        updated.append(pages)
    return RMSNorm(config).apply({"params": weights["final_norm"]}, x), updated


@functools.partial(jax.jit, static_argnums=0)
def _through_block(block: Block, params: Any, pages: dict[str, Any], x: Array, rope: Any,
                   places: Places) -> tuple[Array, dict[str, Any]]:
    """A function of its own, since JAX traces and lowers it once for all layers that are alike."""
    (x, _), changed = block.apply({"params": params, "cache": pages}, x, None, rope, places, mutable=["cache"])
    return x, changed["cache"]


def project(model: Transformer, weights: Weights, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
    """Logits, in float32."""
    rows = weights["embedding" if model.config.tie_embeddings else "lm_head"]
    logits = jnp.einsum("bd,vd->bv", hidden, rows, preferred_element_type=jnp.float32)
    return constrain(model.layout, logits, "batch", "vocab")
