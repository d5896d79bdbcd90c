"""Sampling with a KV cache: prompts are prefilled at once, then one token a row and step, all compiled.

Rows stop at any of the model's end tokens, which is part of the completion, or at max_new_tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from errors import InputError
from models.transformer import Transformer, init_cache, output_kernel
from sharding.rules import RULES, ways

PROMPT_BUCKET = 64
"""prompts are padded to multiples of this, so that lengths do not each compile anew"""


class Completion(NamedTuple):
    """What one prompt was answered."""

    tokens: list[int]
    """the end token included, where one was sampled"""
    logps: list[float]
    """of each token under the sampled distribution; at temperature 0, under softmax(logits)"""
    finish_reason: str
    """"stop" (an end token) or "length" """


class _Decoding(NamedTuple):
    step: Array
    token: Int[Array, "B"]
    logp: Float[Array, "B"]
    done: Array
    cache: Any
    tokens: Int[Array, "B T"]
    logps: Float[Array, "B T"]


def generate(model: Transformer, variables: dict[str, Any], prompts: Sequence[Sequence[int]], key: Key[Array, ""], *,
             max_new_tokens: int, temperature: float, eos_ids: Sequence[int], first_row: int = 0) -> list[Completion]:
    """One completion a prompt. temperature 0 takes the likeliest token; changing it does not recompile.

    Row i draws with fold_in(key, first_row + i), so a row's completion does not depend on its neighbours or its batch.
    """
    longest = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise InputError("a prompt has no tokens; give at least one")
    if longest + max_new_tokens > model.config.max_length:
        raise InputError(f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit the model's context "
                         f"of {model.config.max_length}; shorten the prompt or lower --max-new-tokens")
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else ways(RULES["batch"], mesh)
    rows, width = -(-len(prompts) // shards) * shards, -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
    tokens, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
    ends = np.asarray(sorted(eos_ids) or [-1], np.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first_row + np.arange(rows))
    out, logps = jax.device_get(_generate(model, max_new_tokens, variables, tokens, lengths, keys,
                                          np.float32(temperature), ends, np.int32(len(prompts))))
    return [_completion(out[row], logps[row], ends) for row in range(len(prompts))]


def _completion(tokens: np.ndarray, logps: np.ndarray, ends: np.ndarray) -> Completion:
    stops = np.flatnonzero(np.isin(tokens, ends))
    count = stops[0] + 1 if len(stops) else len(tokens)
    return Completion(tokens[:count].tolist(), logps[:count].tolist(), "stop" if len(stops) else "length")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(model: Transformer, max_new_tokens: int, variables: Any, tokens: Int[Array, "B P"],
              lengths: Int[Array, "B"], keys: Key[Array, "B"], temperature: Float[Array, ""], ends: Int[Array, "E"],
              num_prompts: Int[Array, ""]) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    batch, width = tokens.shape
    kernel = output_kernel(model.config, variables["params"]).astype(model.config.dtype)
    cache = init_cache(model.config, batch, width + max_new_tokens)
    positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    hidden, cache = _forward(model, variables, cache, tokens, positions)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]

    def draw(hidden: Float[Array, "B D"], step: Array) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
        logits = jnp.einsum("bd,dv->bv", hidden, kernel, preferred_element_type=jnp.float32)
        return sample(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, step), temperature)

    def body(at: _Decoding) -> _Decoding:
        tokens, logps = at.tokens.at[:, at.step].set(at.token), at.logps.at[:, at.step].set(at.logp)
        done = at.done | jnp.isin(at.token, ends)
        hidden, cache = _forward(model, variables, at.cache, at.token[:, None], (lengths + at.step)[:, None])
        token, logp = draw(hidden[:, 0], at.step + 1)
        return _Decoding(at.step + 1, token, logp, done, cache, tokens, logps)

    token, logp = draw(last, jnp.zeros((), jnp.int32))
    start = _Decoding(jnp.zeros((), jnp.int32), token, logp, jnp.arange(batch) >= num_prompts, cache,
                      jnp.zeros((batch, max_new_tokens), jnp.int32), jnp.zeros((batch, max_new_tokens)))
    end = jax.lax.while_loop(lambda at: (at.step < max_new_tokens) & ~jnp.all(at.done), body, start)
    return end.tokens, end.logps


def _forward(model: Transformer, variables: Any, cache: Any, tokens: Int[Array, "B T"],
             positions: Int[Array, "B T"]) -> tuple[Float[Array, "B T D"], Any]:
    hidden, updated = model.apply(variables | {"cache": cache}, tokens, positions, jnp.ones_like(tokens),
                                  mutable=["cache"])
    return hidden, updated["cache"]


def sample(logits: Float[Array, "B V"], keys: Key[Array, "B"],
           temperature: Float[Array, ""]) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """A token a row from softmax(logits / temperature), and its log-probability there; argmax at temperature 0."""
    greedy = temperature == 0
    logits = logits / jnp.where(greedy, 1.0, temperature)
    drawn = jax.vmap(jax.random.categorical)(keys, logits)
    token = jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)
    logps = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)[:, 0]
    return token, logps
