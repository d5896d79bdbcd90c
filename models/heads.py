"""The scalar head: one reward for a row, read at the last token of its answer; or a value for every token."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from batch import RowLayout, follows
from models.config import ModelConfig
from models.scoring import hidden_before, hidden_states
from models.transformer import Transformer
from sharding.layout import Layout


class RewardScores(NamedTuple):
    rewards: Float[Array, "B"]
    """0 for a row that fills up the batch"""


def score_rewards(model: Transformer, variables: dict[str, Any], batch: dict[str, ArrayLike],
                  rngs: dict[str, jax.Array] | None = None) -> RewardScores:
    """r = w . h, h the last hidden state of the row's last token, in float32; w from `reward_head`.

    A row is one segment that ends with the answer: the last token is the last that is no padding, whichever id it has
    (the end token, or what a chat template writes after it), as in transformers' classifiers.
    """
    hidden = hidden_states(model, variables, batch, rngs)
    read = jnp.take_along_axis(hidden, last_token(batch["segment_ids"])[:, None, None], axis=1)
    rewards = _project(read, variables)[:, 0]
    return RewardScores(jnp.where(jnp.any(batch["segment_ids"] != 0, axis=-1), rewards, 0.0))


score_rewards.gives = RewardScores._fields


class ValueScores(NamedTuple):
    values: Float[Array, "B T"]
    """V of what token t was drawn after: read at the token before it. 0 for first tokens and padding"""


def score_values(model: Transformer, variables: dict[str, Any], batch: dict[str, ArrayLike],
                 rngs: dict[str, jax.Array] | None = None) -> ValueScores:
    """V_t = w . h_{t-1} in float32, h the last hidden states; w from `reward_head`. Rows are models.scoring.score's."""
    hidden = hidden_states(model, variables, batch, rngs)
    values = jnp.pad(_project(hidden[:, :-1], variables), ((0, 0), (1, 0)))
    return ValueScores(jnp.where(follows(batch["segment_ids"]), values, 0.0))


def score_completion_values(model: Transformer, variables: dict[str, Any], batch: dict[str, ArrayLike],
                            group_size: int, prompt_length: int,
                            rngs: dict[str, jax.Array] | None = None) -> ValueScores:
    """`score_values` of completions that share their prompts (models.scoring.score_completions). Prompts have 0."""
    values = _project(hidden_before(model, variables, batch, group_size, prompt_length, rngs), variables)
    counted = follows(batch["segment_ids"])[:, prompt_length:]
    return ValueScores(jnp.pad(jnp.where(counted, values, 0.0), ((0, 0), (prompt_length, 0))))


def values_by(row_layout: RowLayout) -> Callable[..., ValueScores]:
    """The scorer of values of rows that lie so: (model, variables, batch, rngs=None) -> their values."""
    if row_layout.group_size == 1:
        return score_values
    return functools.partial(score_completion_values, **row_layout._asdict())


score_values.gives = ValueScores._fields


def _project(hidden: Float[Array, "B T D"], variables: dict[str, Any]) -> Float[Array, "B T"]:
    """w . h."""
    return jnp.einsum("btd,dr->bt", hidden.astype(jnp.float32), reward_head(variables),
                      precision=jax.lax.Precision.HIGHEST)


def last_token(segment_ids: Int[ArrayLike, "B T"]) -> Int[Array, "B"]:
    """Index of each row's last token; 0 where there is none."""
    used = segment_ids != 0
    return jnp.max(jnp.where(used, jnp.arange(segment_ids.shape[-1]), 0), axis=-1)


def reward_head(variables: dict[str, Any]) -> Float[Array, "D 1"]:
    """w: the model's, and what the `lora` collection adds to it."""
    stored = variables["params"]["reward_head"].astype(jnp.float32)
    return stored + variables["lora"]["reward_head"] if "reward_head" in variables.get("lora", {}) else stored


def with_reward_head(config: ModelConfig, params: dict[str, Any],
                     layout: Layout) -> tuple[ModelConfig, dict[str, Any]]:
    """A language model as a reward model: w = 0 in place of the vocabulary projection. One that is stays as it is.

    At first all rewards are 0 and all pairs ties; the first step moves w, the next ones the layers below it, too.
    """
    if config.reward_head:
        return config, params
    zeros = jax.jit(lambda: jnp.zeros((config.embed_dim, 1), config.param_dtype), out_shardings=layout.sharding())()
    body = {name: value for name, value in params.items() if name != "lm_head"}
    return dataclasses.replace(config, reward_head=True), body | {"reward_head": zeros}
