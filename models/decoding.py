"""Decoding against a KV cache: the transformer's own blocks, on weights that are made ready for it once.

The train step scans over stacked layers, each of which gives its part of a stack back. A cache would be read and
written whole for every token so; here it is carried from layer to layer, and updated in place. The G layers of a group
are stacked and gone through in a loop; how many are worth that depends on the device (layer_groups).
"""

import dataclasses
import functools
import itertools
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
"""embedding [V, D], lm_head [V, D] where it is not tied, final_norm, and layers: of each group a tree of Block's
params, stacked, [G, ...]"""
Cache = list[dict[str, Any]]
"""of each group, as Block's `cache` collection: keys and values [D, K, G, P, S, H], P pages of S positions for each
layer and each of D shares of the rows"""
CACHE = (*PAGES[:2], None, *PAGES[2:])


def layer_groups(config: ModelConfig, layout: Layout | None) -> list[range]:
    """The layers, in groups; those of one group follow each other and have the same window.

    In bfloat16 on CPUs all that may are one group: that compiles in a third of the time, and decodes 16 rows in an
    eighth less (docs/measured.md). In float32 it takes a tenth more there, and on GPUs XLA copies the weights of a
    layer out of their stack; there, and on TPUs, each layer is a group.
    """
    platform = layout.mesh.devices.flat[0].platform if layout else jax.default_backend()
    if platform != "cpu" or config.dtype != "bfloat16":
        return [range(layer, layer + 1) for layer in range(config.num_layers)]
    alike = [list(group) for _, group in itertools.groupby(range(config.num_layers), config.window_of)]
    return [range(group[0], group[-1] + 1) for group in alike]


def prepare(model: Transformer, variables: dict[str, Any]) -> Weights:
    """Weights for decoding: LoRA merged in (in float32), cast to compute dtype, groups of layers apart; norms stay as
    they are.

    In bfloat16 the merge rounds to what the weights can hold. Applied apart, adapters agree a little better with the
    trainer, and take an eighth more of the time of sampling on a CPU (docs/measured.md).
    """
    params = variables["params"]
    if "lora" in variables:
        params = merge(params, variables["lora"], model.lora.scale)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key == "scale" else leaf.astype(model.config.dtype), params)
    layers = [jax.tree.map(lambda leaf: leaf[group.start:group.stop], params["layers"])  # noqa: B023
              for group in layer_groups(model.config, model.layout)]
    head = {} if model.config.tie_embeddings else {"lm_head": params["lm_head"].T}
    return params | head | {"layers": layers}


def init_cache(config: ModelConfig, shares: int, pages: int, size: int, layout: Layout | None) -> Cache:
    """Empty pages of `size` positions, in compute dtype: `pages` for each share of the rows."""
    def empty(group: range) -> Array:
        shape = shares, config.num_kv_heads, len(group), pages, size, config.head_dim
        return constrain(layout, jnp.zeros(shape, config.dtype), *CACHE)

    return [{"attn": {"keys": empty(group), "values": empty(group)}} for group in layer_groups(config, layout)]


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
    for group, layers, pages in zip(layer_groups(config, model.layout), weights["layers"], cache, strict=True):
        of_group = dataclasses.replace(config, sliding_window=config.window_of(group.start))
        x, pages = _through_layers(Block(of_group, None, False, model.layout), layers, pages, x, rope, places)
        updated.append(pages)
    return RMSNorm(config).apply({"params": weights["final_norm"]}, x), updated


@functools.partial(jax.jit, static_argnums=0)
def _through_layers(block: Block, layers: Any, cache: dict[str, Any], x: Float[Array, "B T D"], rope: Any,
                    places: Places) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """The layers of one group, whose pages lie behind each other. A function of its own, so that JAX traces and lowers
    it once for all groups that are alike."""
    count, num_pages = jax.tree.leaves(cache)[0].shape[2:4]

    def through(number: Any, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        x, pages = carry
        params = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False), layers)
        own = places.replace(table=places.table + number * num_pages)
        (x, _), changed = block.apply({"params": params, "cache": pages}, x, None, rope, own, mutable=["cache"])
        return x, changed["cache"]

    behind = jax.tree.map(lambda pages: pages.reshape(*pages.shape[:2], -1, *pages.shape[4:]), cache)
    x, behind = jax.lax.fori_loop(0, count, through, (x, behind), unroll=count == 1)
    return x, jax.tree.map(lambda pages, given: pages.reshape(given.shape), behind, cache)


def project(model: Transformer, weights: Weights, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
    """Logits, in float32."""
    rows = weights["embedding" if model.config.tie_embeddings else "lm_head"]
    logits = jnp.einsum("bd,vd->bv", hidden, rows, preferred_element_type=jnp.float32)
    return constrain(model.layout, logits, "batch", "vocab")
