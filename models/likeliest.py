"""The likeliest tokens at every place of a text, beside the log-probability of the one that stands there."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from batch import follows
from models.projection import likeliest, statistics
from models.transformer import Transformer, output_head

LIKELIEST = 20
"""tokens at each place"""


class LikeliestScores(NamedTuple):
    """Index t speaks of token t, as in models.scoring.TokenScores; the first token of a segment, and padding, have 0.
    """

    logps: Float[Array, "B T"]
    """log p(tokens[b, t] | tokens[b, <t]), the scorer's"""
    likeliest: Int[Array, "B T L"]
    """the likeliest tokens in its place, the likeliest first"""
    likeliest_logps: Float[Array, "B T L"]
    """the first is `logps` to the last bit where no token is likelier than the one that stands there"""


def score_likeliest(model: Transformer, variables: dict[str, Any], batch: dict[str, ArrayLike]) -> LikeliestScores:
    """Scores of `batch` (tokens, positions, segment_ids, all [B, T]) under softmax(logits)."""
    hidden = model.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"])
    head, tied = output_head(model.config, variables["params"])
    own = statistics(hidden, head, jnp.roll(batch["tokens"], -1, axis=1), 1.0, tied, model.layout)
    tokens, logits = likeliest(hidden, head, min(LIKELIEST, model.config.vocab_size), tied, model.layout)
    logps = logits - own.log_z[..., None]
    logps = logps.at[..., 0].set(jnp.where(own.greedy == 1, own.logp, logps[..., 0]))
    counted = follows(batch["segment_ids"])[..., None]
    rolled = (jnp.where(counted, jnp.roll(each, 1, axis=1), 0) for each in (own.logp[..., None], tokens, logps))
    return LikeliestScores(*(each[..., 0] if place == 0 else each for place, each in enumerate(rolled)))
