"""The scalar head: one reward for a row, read at the last token of its answer."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from models.config import ModelConfig
from models.transformer import Transformer


class RewardScores(NamedTuple):
    rewards: Float[Array, "B"]
    """0 for a row that fills up the batch"""


def score_rewards(model: Transformer, variables: dict[str, Any], batch: dict[str, ArrayLike],
                  rngs: dict[str, jax.Array] | None = None) -> RewardScores:
    """r = w . h, h the last hidden state of the row's last token, in float32; w from `reward_head`.

    A row is one segment that ends with the answer: the last token is the last that is no padding, whichever id it has
    (the end token, or what a chat template writes after it), as in transformers' classifiers.
    """
    hidden = model.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"], rngs=rngs)
    read = jnp.take_along_axis(hidden, last_token(batch["segment_ids"])[:, None, None], axis=1)[:, 0]
    rewards = jnp.einsum("bd,dr->b", read.astype(jnp.float32), reward_head(variables),
                         precision=jax.lax.Precision.HIGHEST)
    return RewardScores(jnp.where(jnp.any(batch["segment_ids"] != 0, axis=-1), rewards, 0.0))


score_rewards.gives = RewardScores._fields


def last_token(segment_ids: Int[ArrayLike, "B T"]) -> Int[Array, "B"]:
    """Index of each row's last token; 0 where there is none."""
    used = segment_ids != 0
    return jnp.max(jnp.where(used, jnp.arange(segment_ids.shape[-1]), 0), axis=-1)


def reward_head(variables: dict[str, Any]) -> Float[Array, "D 1"]:
    """w: the model's, and what the `lora` collection adds to it."""
    stored = variables["params"]["reward_head"].astype(jnp.float32)
    return stored + variables["lora"]["reward_head"] if "reward_head" in variables.get("lora", {}) else stored


def with_reward_head(config: ModelConfig, params: dict[str, Any],
                     mesh: jax.sharding.Mesh) -> tuple[ModelConfig, dict[str, Any]]:
    """A language model as a reward model: w = 0 in place of the vocabulary projection. One that is stays as it is.

    At first all rewards are 0 and all pairs ties; the first step moves w, the next ones the layers below it, too.
    """
    if config.reward_head:
        return config, params
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    zeros = jax.jit(lambda: jnp.zeros((config.embed_dim, 1), config.param_dtype), out_shardings=everywhere)()
    body = {name: value for name, value in params.items() if name != "lm_head"}
    return dataclasses.replace(config, reward_head=True), body | {"reward_head": zeros}
