"""What the engine has compiled: prefilling pages, copying them, and decoding some tokens for some rows.

Nothing here has the size of a prompt, of a completion or of what they may become: shapes follow from the numbers of
rows and pages and from CHUNK. R rows of a call, S slots of the engine, M pages that a row may have, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from models import decoding
from models.transformer import Transformer
from rollouts.sampling import Controls, penalise, sample
from sharding.layout import constrain

CHUNK = 32
"""tokens that are decoded between two returns to the host, at the most"""
STOPS = 8
"""end tokens of a row's own"""
LIKELIEST = 20
"""tokens whose log-probabilities can be asked for"""


class Seen(NamedTuple):
    """What decoding has to know of the tokens of S slots, where a request asks for it."""

    in_prompt: Bool[Array, "S V"]
    count: Int[Array, "S V"]
    """times that the completion has a token"""
    bias: Float[Array, "S V"]
    """is added to the logits"""


class Rows(NamedTuple):
    """What a call decodes; a row at slot S is none."""

    slot: Int[Array, "R"]
    token: Int[Array, "R"]
    """read next: the context's last token"""
    position: Int[Array, "R"]
    """of that token"""
    count: Int[Array, "R"]
    """tokens of the completion so far"""
    limit: Int[Array, "R"]
    key: UInt32[Array, "R W"]
    """data of each row's key"""
    table: Int[Array, "R M"]
    stops: Int[Array, "R E"]
    """end tokens, -1 where there are fewer"""
    controls: Controls
    likeliest: Bool[Array, "R"]
    """the LIKELIEST are wanted"""
    biased: Bool[Array, "R"]
    """penalties or a bias are in force"""


class Drawn(NamedTuple):
    """What a call gave, `count` minus that of Rows tokens a row."""

    count: Int[Array, "R"]
    stopped: Bool[Array, "R"]
    """by an end token"""
    tokens: Int[Array, "R C"]
    logps: Float[Array, "R C"]
    likeliest: Int[Array, "R C L"]
    likeliest_logps: Float[Array, "R C L"]
    """under softmax(logits), whatever the controls"""
    plain_logps: Float[Array, "R C"]
    """of the tokens drawn, under softmax(logits), too"""


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def init_cache(model: Transformer, shares: int, pages: int, size: int) -> decoding.Cache:
    return decoding.init_cache(model.config, shares, pages, size, model.layout)


@functools.partial(jax.jit, static_argnums=(0, 1))
def init_seen(model: Transformer, slots: int) -> Seen:
    shape = slots, model.config.vocab_size
    zeros = constrain(model.layout, jnp.zeros(shape), "batch", "vocab")
    return Seen(zeros > 0, zeros.astype(jnp.int32), zeros)


@functools.partial(jax.jit, static_argnums=1)
def grow_cache(cache: decoding.Cache, pages: int) -> decoding.Cache:
    """The same with empty pages behind, `pages` in all."""
    def grown(held: Array) -> Array:
        behind = [(0, pages - size if axis == 3 else 0) for axis, size in enumerate(held.shape)]
        return jnp.pad(held, behind)

    return jax.tree.map(grown, cache)


@functools.partial(jax.jit, donate_argnums=0)
def admit(seen: Seen, slot: Int[Array, ""], in_prompt: Bool[Array, "V"], count: Int[Array, "V"],
          bias: Float[Array, "V"]) -> Seen:
    """Gives a slot to a row with penalties or a bias."""
    return Seen(seen.in_prompt.at[slot].set(in_prompt), seen.count.at[slot].set(count), seen.bias.at[slot].set(bias))


@functools.partial(jax.jit, donate_argnums=0)
def copy_pages(cache: decoding.Cache, sources: Int[Array, "D A"], targets: Int[Array, "D A"]) -> decoding.Cache:
    """Copies pages within each share; a target past the last page is none."""
    def copy(pages: Array, source: Array, target: Array) -> Array:
        return pages.at[:, :, target].set(pages.at[:, :, source].get(mode="clip"), mode="drop")

    return jax.tree.map(lambda each: jax.vmap(copy)(each, sources, targets), cache)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(model: Transformer, weights: decoding.Weights, cache: decoding.Cache, tokens: Int[Array, "R T"],
            positions: Int[Array, "R T"], table: Int[Array, "R M"]) -> decoding.Cache:
    """Reads parts of contexts into the cache; a token at position -1 is none."""
    return decoding.forward(model, weights, cache, tokens, positions, table)[1]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def decode(model: Transformer, weights: decoding.Weights, cache: decoding.Cache, seen: Seen, rows: Rows,
           patience: Int[Array, ""], steps: Int[Array, ""]) -> tuple[decoding.Cache, Seen, Drawn]:
    """Decodes until `patience` rows are done, all are, or `steps` (up to CHUNK) tokens were drawn for each."""
    keys, numbers = jax.random.wrap_key_data(rows.key), jnp.arange(len(rows.slot))
    none = rows.slot >= len(seen.count)
    biased = jnp.any(rows.biased)

    def step(carry: tuple) -> tuple:
        made, cache, seen, token, done, out = carry
        position = jnp.where(done, -1, rows.position + out.count - rows.count)
        hidden, cache = decoding.forward(model, weights, cache, token[:, None], position[:, None], rows.table)
        logits = decoding.project(model, weights, hidden[:, 0])
        adjusted = jax.lax.cond(biased, lambda: _adjust(logits, seen, rows), lambda: logits)
        drawn, logp = sample(adjusted, jax.vmap(jax.random.fold_in)(keys, out.count), rows.controls)
        out = _write(out, numbers, jnp.where(done, CHUNK, made), drawn, logp)
        out = jax.lax.cond(jnp.any(rows.likeliest), lambda: _write_likeliest(out, numbers, made, logits, drawn),
                           lambda: out)
        slot = jnp.where(done | ~rows.biased, len(seen.count), rows.slot)
        seen = seen._replace(count=seen.count.at[slot, drawn].add(1, mode="drop"))
        out = out._replace(count=out.count + ~done,
                           stopped=out.stopped | ~done & jnp.any(drawn[:, None] == rows.stops, axis=1))
        return made + 1, cache, seen, jnp.where(done, token, drawn), done | out.stopped | (out.count >= rows.limit), out

    def goes_on(carry: tuple) -> Array:
        made, *_, done, _ = carry
        return (made < steps) & (jnp.sum(done) - jnp.sum(none) < patience) & ~jnp.all(done)

    start = jnp.zeros((), jnp.int32), cache, seen, rows.token, none, _nothing(rows)
    _, cache, seen, _, _, out = jax.lax.while_loop(goes_on, step, start)
    out = jax.tree.map(lambda each: constrain(model.layout, each, *[None] * each.ndim), out)
    return cache, seen, out  # the last everywhere, where every process can read it


def _nothing(rows: Rows) -> Drawn:
    count = len(rows.slot)
    return Drawn(rows.count, jnp.zeros(count, bool), jnp.zeros((count, CHUNK), jnp.int32), jnp.zeros((count, CHUNK)),
                 jnp.zeros((count, CHUNK, LIKELIEST), jnp.int32), jnp.zeros((count, CHUNK, LIKELIEST)),
                 jnp.zeros((count, CHUNK)))


def _adjust(logits: Float[Array, "R V"], seen: Seen, rows: Rows) -> Float[Array, "R V"]:
    def of_rows(each: Array) -> Array:
        return each.at[rows.slot].get(mode="clip")

    adjusted = penalise(logits, of_rows(seen.in_prompt), of_rows(seen.count), rows.controls) + of_rows(seen.bias)
    return jnp.where(rows.biased[:, None], adjusted, logits)


def _write(out: Drawn, numbers: Array, column: Array, drawn: Array, logp: Array) -> Drawn:
    """A column past the last one is dropped."""
    return out._replace(tokens=out.tokens.at[numbers, column].set(drawn, mode="drop"),
                        logps=out.logps.at[numbers, column].set(logp, mode="drop"))


def _write_likeliest(out: Drawn, numbers: Array, column: Array, logits: Float[Array, "R V"],
                     drawn: Int[Array, "R"]) -> Drawn:
    every = jax.nn.log_softmax(logits)
    logps, tokens = jax.lax.top_k(every, min(LIKELIEST, logits.shape[-1]))
    plain = jnp.take_along_axis(every, drawn[:, None], axis=-1)[:, 0]
    return out._replace(likeliest=out.likeliest.at[numbers, column, : tokens.shape[1]].set(tokens),
                        likeliest_logps=out.likeliest_logps.at[numbers, column, : logps.shape[1]].set(logps),
                        plain_logps=out.plain_logps.at[numbers, column].set(plain))
