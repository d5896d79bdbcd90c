"""A small model whose parts are those of the large ones: the checks of steps and of sampling run the users' code on it.

Every weight is a number of bfloat16, so that a model in bfloat16 and the reference in float32 have the same.
"""

import dataclasses
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from checks.attention import plain_attention
from checks.machine import reference_device
from models import transformer
from models.config import ModelConfig
from models.lora import merge
from models.settings import LoRAConfig
from models.transformer import Transformer, init_variables, output_head

CONFIG = ModelConfig(vocab_size=512, embed_dim=256, mlp_dim=512, num_layers=2, num_heads=4, num_kv_heads=2,
                     head_dim=128, max_length=2048, qk_norm=True, family="qwen3")
LORA = LoRAConfig(rank=8, alpha=16.0)

LOGIT = 2.0
"""standard deviation of the logits"""

OF_A_LAYER = 16
"""roundings of what a layer adds to the residual stream, which is float32: two norms, seven products with their
results, queries and keys turned, attention's weights and output, gate times up"""


def config(dtype: str, **changes: Any) -> ModelConfig:
    return dataclasses.replace(CONFIG, dtype=dtype, **changes)


def variables(config: ModelConfig, lora: LoRAConfig | None = None, seed: int = 0) -> dict[str, Any]:
    """Random, in numpy; LoRA's B, too. Kernels keep the size of what goes through them, so that no score and no logit
    is all there is."""
    random = np.random.default_rng(seed)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: init_variables(Transformer(config, lora), jax.random.key(0))))

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        noise = random.standard_normal(leaf.shape)
        size = LOGIT * leaf.shape[-1] ** -0.5 if name == "embedding" else leaf.shape[-2:][0] ** -0.5
        value = 1 + 0.1 * noise if name == "scale" else noise * size
        return np.asarray(jnp.asarray(value * (0.1 if name == "b" else 1), jnp.bfloat16), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def plain_logits(config: ModelConfig, lora: LoRAConfig | None, held: dict[str, Any], batch: dict[str, Any]) -> Any:
    """[B, T, V] in float32, by attention written out (plain_attention), adapters merged into their kernels, and one
    product with the head."""
    config = dataclasses.replace(config, dtype="float32", remat="none")
    params = held["params"] if lora is None else merge(held["params"], held["lora"], lora.scale)
    with mock.patch.object(transformer, "attend", _plainly):
        hidden = Transformer(config).apply({"params": params}, batch["tokens"], batch["positions"],
                                           batch["segment_ids"])
    head, tied = output_head(config, params)
    return jnp.einsum("btd,vd->btv" if tied else "btd,dv->btv", hidden, head)


def _plainly(q: Any, k: Any, v: Any, queries: Any, keys: Any, window: int | None, *_: Any) -> Any:
    """models.attention.attend by nothing of its own."""
    back = queries.positions[:, :, None] - keys.positions[:, None, :]
    same = queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :]
    seen = same & (back >= 0) & (back < (window or back.shape[-1])) & (keys.segment_ids != 0)[:, None, :]
    return plain_attention(q, k, v, seen)


def plain_logps(logits: Any, batch: dict[str, Any]) -> Any:
    """[B, T]: log p of each token, 0 for the first of a segment."""
    before = jax.nn.log_softmax(logits[:, :-1])
    logps = jnp.take_along_axis(before, batch["tokens"][:, 1:, None], axis=-1)[..., 0]
    ids = batch["segment_ids"]
    return jnp.pad(jnp.where((ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] != 0), logps, 0), ((0, 0), (1, 0)))


def in_reference(function: Any, *arguments: Any) -> Any:
    """What a jitted function gives where references are computed."""
    with jax.default_device(reference_device()), jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(function)(*jax.device_put(arguments, reference_device())))
