"""The one scorer: log-probability, entropy and the like of every token, without a [B, T, V] array."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from batch import RowLayout, follows
from models.places import SharedPrompt
from models.projection import statistics
from models.transformer import Transformer, output_head


class TokenScores(NamedTuple):
    """Index t speaks of token t; the first token of a segment, and padding, have 0."""

    logps: Float[Array, "B T"]
    """log p(tokens[b, t] | tokens[b, <t])"""
    entropy: Float[Array, "B T"]
    """of the distribution that token t is drawn from, in nats"""
    log_z: Float[Array, "B T"]
    """log of that distribution's normaliser: logsumexp of logits / temperature"""
    log_collision: Float[Array, "B T"]
    """log sum_v p_v^2: that two draws of token t agree"""
    greedy: Float[Array, "B T"]
    """1 where no token is likelier than token t, which greedy decoding would take"""


def score(model: Transformer, variables: dict[str, Any], batch: dict[str, ArrayLike],
          temperature: float | Array = 1.0, rngs: dict[str, jax.Array] | None = None) -> TokenScores:
    """Scores of `batch` (tokens, positions, segment_ids, all [B, T]; where it has one, row_length [B], see batch.py)
    under softmax(logits / temperature).
    """
    hidden = hidden_states(model, variables, batch, rngs)
    after = jnp.roll(batch["tokens"], -1, axis=1)  # hidden states stay whole: what the last predicts is dropped
    scores = _score_hidden(model, hidden, variables["params"], after, temperature)
    counted = follows(batch["segment_ids"])
    return TokenScores(*(jnp.where(counted, jnp.roll(each, 1, axis=1), 0.0) for each in scores))


score.gives = TokenScores._fields


def hidden_states(model: Transformer, variables: dict[str, Any], batch: dict[str, ArrayLike],
                  rngs: dict[str, jax.Array] | None = None) -> Float[Array, "B T D"]:
    """The last hidden states of a batch."""
    return model.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"],
                       lengths=batch.get("row_length"), rngs=rngs)


def score_completions(model: Transformer, variables: dict[str, Any], batch: dict[str, ArrayLike], group_size: int,
                      prompt_length: int, temperature: float | Array = 1.0,
                      rngs: dict[str, jax.Array] | None = None) -> TokenScores:
    """`score` of completions, at a part of the cost: each `group_size` G adjacent rows share their prompt, which is
    computed once for all, and only completions are projected onto the vocabulary. Prompts' tokens have 0.

    Prompts end at column `prompt_length` W, padded in front; completions [B, C] begin there. G rows, all members of a
    group or some, become one row of W + G C positions, in which each completion sees the prompt and itself. Any of
    them may be empty (segment 0 throughout).
    """
    before = hidden_before(model, variables, batch, group_size, prompt_length, rngs)
    scores = _score_hidden(model, before, variables["params"], batch["tokens"][:, prompt_length:], temperature)
    counted = follows(batch["segment_ids"])[:, prompt_length:]
    return TokenScores(*(jnp.pad(jnp.where(counted, each, 0.0), ((0, 0), (prompt_length, 0))) for each in scores))


def hidden_before(model: Transformer, variables: dict[str, Any], batch: dict[str, ArrayLike], group_size: int,
                  prompt_length: int, rngs: dict[str, jax.Array] | None = None) -> Float[Array, "B C D"]:
    """The hidden state from which each token of a completion is predicted, of rows as score_completions has them."""
    count = len(batch["tokens"]) // group_size

    def lay(column: ArrayLike) -> Array:  # [B, W + C] -> [P, W + G C]
        prompts = column[:, :prompt_length].reshape(count, group_size, -1)
        completions = column[:, prompt_length:].reshape(count, -1)
        return jnp.concatenate([jnp.max(prompts, axis=1), completions], axis=1)  # empty rows hold zeros, the others one

    hidden = model.apply(variables, *(lay(jnp.asarray(batch[name])) for name in ("tokens", "positions", "segment_ids")),
                         SharedPrompt(prompt_length, group_size), rngs=rngs)
    last = jnp.repeat(hidden[:, prompt_length - 1 : prompt_length], group_size, axis=0)
    after = hidden[:, prompt_length:].reshape(len(batch["tokens"]), -1, hidden.shape[-1])
    return jnp.concatenate([last, after[:, :-1]], axis=1)  # what predicts each token of a completion


def score_by(row_layout: RowLayout, temperature: float = 1.0) -> Callable[..., TokenScores]:
    """The scorer of rows that lie so: (model, variables, batch, rngs=None) -> their scores."""
    if row_layout.group_size == 1:
        return functools.partial(score, temperature=temperature)
    return functools.partial(score_completions, **row_layout._asdict(), temperature=temperature)


def _score_hidden(model: Transformer, hidden: Float[Array, "B T D"], params: dict[str, Any], tokens: Int[Array, "B T"],
                  temperature: float | Array) -> TokenScores:
    head, tied = output_head(model.config, params)
    return TokenScores(*statistics(hidden, head, tokens, temperature, tied, model.layout))
