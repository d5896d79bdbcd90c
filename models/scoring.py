"""The one scorer: log-probability, entropy and the like of every token, without a [B, T, V] array.

The vocabulary projection runs over chunks of positions under lax.scan, each rematerialised, so that neither pass
holds more than one chunk's logits.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from batch import RowLayout, follows
from models.attention import SharedPrompt
from models.transformer import Transformer, output_kernel
from sharding.layout import Layout, constrain

LOGITS_AT_A_TIME = 2**25
"""logits that one device holds at a time (128 MiB in float32)"""


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
    """Scores of `batch` (tokens, positions, segment_ids, all [B, T]) under softmax(logits / temperature)."""
    hidden = model.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"], rngs=rngs)
    kernel = output_kernel(model.config, variables["params"])
    scores = score_hidden(hidden[:, :-1], kernel, batch["tokens"][:, 1:], temperature, model.layout)
    counted = follows(batch["segment_ids"])
    return TokenScores(*(jnp.where(counted, jnp.pad(each, ((0, 0), (1, 0))), 0.0) for each in scores))


score.gives = TokenScores._fields


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
    scores = score_hidden(before, output_kernel(model.config, variables["params"]),
                          batch["tokens"][:, prompt_length:], temperature, model.layout)
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


def score_hidden(hidden: Float[Array, "B T D"], stored: Float[Array, "D V"], tokens: Int[Array, "B T"],
                 temperature: float | Array = 1.0, layout: Layout | None = None) -> TokenScores:
    """Scores of tokens[b, t] under softmax(hidden[b, t] @ stored / temperature), chunk by chunk of positions.

    The matmul is in hidden's dtype, the rest in float32.
    """
    kernel = jax.lax.stop_gradient(stored).astype(hidden.dtype)
    batch, length = tokens.shape
    chunk = positions_at_a_time(batch, length, kernel.shape[1], layout)
    fill = -length % chunk

    def chunks(x: Array) -> Array:  # [B, T, ...] -> [T / chunk, B, chunk, ...]
        x = jnp.pad(x, [(0, 0), (0, fill)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def body(carry: None, chunk: tuple[Array, Array]) -> tuple[None, TokenScores]:
        return carry, _score_chunk(chunk[0], kernel, stored, chunk[1], temperature, layout)

    _, scores = jax.lax.scan(body, None, (chunks(hidden), chunks(tokens)))
    return TokenScores(*(jnp.moveaxis(each, 0, 1).reshape(batch, -1)[:, :length] for each in scores))


def positions_at_a_time(batch: int, length: int, vocab_size: int, layout: Layout | None = None) -> int:
    """Positions of every row in a chunk, so that a device holds about LOGITS_AT_A_TIME logits."""
    pieces = 1 if layout is None else layout.ways("batch") * layout.ways("vocab")
    wanted = max(1, LOGITS_AT_A_TIME * pieces // (batch * vocab_size))
    return -(-length // -(-length // wanted))  # chunks of even size


@jax.custom_vjp
def project(hidden: Float[Array, "... D"], kernel: Float[Array, "D V"],
            stored: Float[Array, "D V"]) -> Float[Array, "... V"]:
    """hidden @ kernel in float32, `kernel` being `stored` in hidden's dtype; the gradient goes to `stored`.

    Backward, the cotangent is cast to hidden's dtype, so that all three matmuls run in it (left to itself, JAX would
    upcast the kernel instead), and the kernel's gradient has the stored dtype, so that chunks add up in float32.
    """
    return jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)


def _project_forward(hidden: Array, kernel: Array, stored: Array) -> tuple[Array, Any]:
    return project(hidden, kernel, stored), (hidden, kernel, jnp.zeros((), stored.dtype))


def _project_backward(saved: Any, cotangent: Array) -> tuple[Array, None, Array]:
    hidden, kernel, like_stored = saved
    cotangent = cotangent.astype(hidden.dtype)
    to_hidden = jnp.einsum("...v,dv->...d", cotangent, kernel)
    to_stored = jnp.einsum("...d,...v->dv", hidden, cotangent, preferred_element_type=jnp.float32)
    # the barrier: XLA's CPU backend would fold the transpose of a tied embedding into a matmul that it cannot run
    return to_hidden, None, jax.lax.optimization_barrier(to_stored).astype(like_stored.dtype)


project.defvjp(_project_forward, _project_backward)


def _score_chunk(hidden: Float[Array, "B C D"], kernel: Float[Array, "D V"], stored: Float[Array, "D V"],
                 tokens: Int[Array, "B C"], temperature: float | Array, layout: Layout | None) -> TokenScores:
    logits = project(hidden, kernel, stored)
    logits = constrain(layout, logits / temperature, "batch", "query_length", "vocab")
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))  # log_z has its gradient from `total` alone
    shifted = logits - peak
    masses = jnp.exp(shifted)  # the one exponential that all scores share
    total = jnp.sum(masses, axis=-1)
    log_total = jnp.log(total)
    # a comparison instead of a gather: it fuses, and it needs no exchange over a split vocabulary
    chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == tokens[..., None]
    below_peak = jnp.sum(jnp.where(chosen, shifted, 0.0), axis=-1)
    entropy = log_total - jnp.sum(masses * shifted, axis=-1) / total
    log_collision = jnp.log(jnp.sum(masses * masses, axis=-1)) - 2 * log_total
    greedy = (below_peak >= 0).astype(jnp.float32)
    return TokenScores(below_peak - log_total, entropy, log_total + peak[..., 0], log_collision, greedy)
