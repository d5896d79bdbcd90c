"""The vocabulary projection, chunk by chunk of each device's own tokens: statistics of the logits, and their
gradient.

z = h K / temperature are a token's logits, K the head; over the vocabulary Z = sum_v exp(z_v) and p_v = exp(z_v) / Z.
Where K lies in parts, those of the embedding are gathered once before the loop over chunks, and K's gradient, summed up
in float32, is reduced once after it. Parts of the vocabulary have statistics of their own, joined after the loop.
Within it nothing is exchanged. The backward pass computes the logits again.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from sharding.layout import Layout, names_of, on_each
from sharding.memory import logits_at_a_time

TOKENS_AT_A_TIME = 2048
"""from so many on, a chunk's matmuls take longer than to read and write the head and its gradient: 2 n operations for 8
bytes of each weight are more than any TPU computes in the time of a byte of its memory"""


class Statistics(NamedTuple):
    """Of every token n, in float32."""

    logp: Float[Array, "*n"]
    """log p of the token itself: z_token - log Z"""
    entropy: Float[Array, "*n"]
    """-sum_v p_v log p_v"""
    log_z: Float[Array, "*n"]
    """log Z"""
    log_collision: Float[Array, "*n"]
    """log sum_v p_v^2"""
    greedy: Float[Array, "*n"]
    """1 where no token is likelier; without gradient"""


class Split(NamedTuple):
    """Mesh axes, of several devices, over which rows, the head's vocabulary and its embedding are split."""

    rows: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()


class Part(NamedTuple):
    """Statistics over a part of the vocabulary, shifted by the part's own largest logit m: e_v = exp(z_v - m)."""

    peak: Float[Array, " n"]
    """m"""
    total: Float[Array, " n"]
    """sum e_v"""
    weighted: Float[Array, " n"]
    """sum e_v (z_v - m)"""
    squares: Float[Array, " n"]
    """sum e_v^2"""
    chosen: Float[Array, " n"]
    """z of the token; 0 where another part has it"""


def statistics(hidden: Float[Array, "B T D"], head: Float[Array, "a b"], tokens: Int[Array, "B T"],
               temperature: float | Array = 1.0, tied: bool = False, layout: Layout | None = None) -> Statistics:
    """Statistics [B, T] of tokens[b, t] under softmax(hidden[b, t] K / temperature).

    `head` is K [D, V] as it is stored, or, `tied`, the embedding [V, D]. Matmuls are in hidden's dtype, the rest is
    float32. Gradients go to hidden and head, none to temperature.
    """
    temperature = jax.lax.stop_gradient(jnp.asarray(temperature, jnp.float32))
    return _statistics(layout, tied, hidden, head, tokens, temperature)


def likeliest(hidden: Float[Array, "B T D"], head: Float[Array, "a b"], count: int, tied: bool = False,
              layout: Layout | None = None) -> tuple[Int[Array, "B T L"], Float[Array, "B T L"]]:
    """The `count` L likeliest tokens after every hidden state, the likeliest first, and their logits; no gradient."""
    split, (rows, kernel, flat) = _specs(layout, tied, hidden)
    each = None if flat is None else PartitionSpec(*flat, None)
    local = functools.partial(_likeliest, split, tied, logits_at_a_time(layout), count)
    return _mapped(layout, local, (rows, kernel), (each, each))(*map(jax.lax.stop_gradient, (hidden, head)))


def _likeliest(split: Split, tied: bool, at_a_time: int, count: int, hidden: Array, head: Array) -> tuple[Array, Array]:
    """Each part of the vocabulary has its own, of which the likeliest are taken after the loop."""
    kernel = _gathered(head.astype(hidden.dtype), split, tied)
    own = kernel.shape[0 if tied else 1]
    size = _chunk(math.prod(hidden.shape[:2]), own, at_a_time)

    def body(carry: None, chunk: Array) -> tuple[None, tuple[Array, Array]]:
        return carry, tuple(jax.lax.top_k(_logits(chunk, kernel, tied), min(count, own)))

    _, (logits, tokens) = jax.lax.scan(body, None, _chunks(hidden, size, 1))
    tokens = tokens + _first_of_part(kernel, split, tied)
    if split.vocab:
        logits, tokens = (jax.lax.all_gather(each, split.vocab, axis=2, tiled=True) for each in (logits, tokens))
        logits, places = jax.lax.top_k(logits, min(count, logits.shape[-1]))
        tokens = jnp.take_along_axis(tokens, places, axis=-1)
    return tuple(each.reshape(-1, each.shape[-1])[: math.prod(hidden.shape[:2])].reshape(
        *hidden.shape[:2], -1) for each in (tokens, logits))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _statistics(layout: Layout | None, tied: bool, hidden: Array, head: Array, tokens: Array,
                temperature: Array) -> Statistics:
    split, specs = _specs(layout, tied, hidden)
    local = functools.partial(_forward, split, tied, logits_at_a_time(layout))
    rows, kernel, flat = specs
    return _mapped(layout, local, (rows, kernel, flat, PartitionSpec()), Statistics(*[flat] * 5))(
        hidden, head, tokens, temperature)


def _keep(layout: Layout | None, tied: bool, *primals: Any) -> tuple[Statistics, Any]:
    hidden, head, tokens, temperature = (each.value for each in primals)
    found = _statistics(layout, tied, hidden, head, tokens, temperature)
    wanted = jnp.zeros(()) if primals[1].perturbed else None  # None: the head is frozen, and has no gradient
    return found, (hidden, head, tokens, temperature, found, wanted)


def _give_back(layout: Layout | None, tied: bool, saved: Any, cotangents: Statistics) -> tuple[Any, ...]:
    hidden, head, tokens, temperature, found, wanted = saved
    split, (rows, kernel, flat) = _specs(layout, tied, hidden)
    given = Statistics(*(None if isinstance(each, SymbolicZero) else each for each in cotangents))
    dtype = None if wanted is None else "float32" if layout is None else layout.reduce_dtype
    local = functools.partial(_backward, split, tied, logits_at_a_time(layout), dtype)
    of_head = None if wanted is None else kernel
    to_hidden, to_head = _mapped(
        layout, local, (rows, kernel, flat, PartitionSpec(), *_like((found, given), flat)), (rows, of_head))(
        hidden, head, tokens, temperature, found, given)
    return to_hidden, to_head, None, None


_statistics.defvjp(_keep, _give_back, symbolic_zeros=True)


def _like(tree: Any, spec: PartitionSpec | None) -> Any:
    return jax.tree.map(lambda _: spec, tree)


def _specs(layout: Layout | None, tied: bool, hidden: Array) -> tuple[Split, Any]:
    """How rows [B, T, D], the head and tokens [B, T] lie; rows that do not divide are computed everywhere."""
    if layout is None:
        return Split(), (None, None, None)
    (batch,), (embed, vocab) = layout.entries(("batch",)), layout.entries(("embed", "vocab"))
    batch = batch if hidden.shape[0] % layout.size(batch) == 0 else None
    split = Split(*(tuple(name for name in names_of(entry) if layout.mesh.shape[name] > 1)
                    for entry in (batch, vocab, embed)))
    kernel = PartitionSpec(vocab, embed) if tied else PartitionSpec(embed, vocab)
    return split, (PartitionSpec(batch, None, None), kernel, PartitionSpec(batch, None))


def _mapped(layout: Layout | None, function: Any, in_specs: Any, out_specs: Any) -> Any:
    return function if layout is None else on_each(layout, function, in_specs, out_specs)


def _forward(split: Split, tied: bool, at_a_time: int, hidden: Array, head: Array, tokens: Array,
             temperature: Array) -> Statistics:
    kernel = _gathered(head.astype(hidden.dtype), split, tied)
    first = _first_of_part(kernel, split, tied)
    size = _chunk(tokens.size, kernel.shape[0 if tied else 1], at_a_time)

    def body(carry: None, chunk: tuple[Array, Array]) -> tuple[None, Part]:
        return carry, _part(_logits(chunk[0], kernel, tied) / temperature, chunk[1] - first)

    _, parts = jax.lax.scan(body, None, (_chunks(hidden, size, 1), _chunks(tokens, size)))
    joined = _join(Part(*(_unchunked(each, tokens) for each in parts)), split.vocab)
    return Statistics(*joined)


def _part(logits: Float[Array, "n V"], tokens: Int[Array, " n"]) -> Part:
    peak = jnp.max(logits, axis=-1)
    shifted = logits - peak[:, None]
    masses = jnp.exp(shifted)  # the one exponential that all share
    # a comparison instead of a gather: it fuses
    chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == tokens[:, None]
    return Part(peak, jnp.sum(masses, axis=-1), jnp.sum(masses * shifted, axis=-1), jnp.sum(masses * masses, axis=-1),
                jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1))


def _join(part: Part, vocab: tuple[str, ...]) -> Statistics:
    """Parts' sums, brought to the largest logit of all."""
    def add(x: Array) -> Array:
        return jax.lax.psum(x, vocab) if vocab else x

    peak = jax.lax.pmax(part.peak, vocab) if vocab else part.peak
    lower = part.peak - peak
    shrink = jnp.exp(lower)
    total = add(part.total * shrink)
    weighted = add(shrink * (part.weighted + part.total * lower))
    below_peak = add(part.chosen) - peak
    log_total = jnp.log(total)
    return Statistics(below_peak - log_total, log_total - weighted / total, log_total + peak,
                      jnp.log(add(part.squares * shrink**2)) - 2 * log_total, (below_peak >= 0).astype(jnp.float32))


def _backward(split: Split, tied: bool, at_a_time: int, dtype: str | None, hidden: Array, head: Array, tokens: Array,
              temperature: Array, found: Statistics, given: Statistics) -> tuple[Array, Array | None]:
    """The cotangents of hidden and, summed over devices in `dtype`, of head; None where it is frozen."""
    kernel = _gathered(head.astype(hidden.dtype), split, tied)
    first = _first_of_part(kernel, split, tied)
    size = _chunk(tokens.size, kernel.shape[0 if tied else 1], at_a_time)

    def body(summed: Array | None, chunk: Any) -> tuple[Array | None, Array]:
        hidden, tokens, found, given = chunk
        logits = _logits(hidden, kernel, tied) / temperature
        to_logits = (_to_logits(logits, tokens - first, found, given) / temperature).astype(hidden.dtype)
        back = jnp.einsum("nv,vd->nd" if tied else "nv,dv->nd", to_logits, kernel)
        if summed is None:
            return None, back
        outer = jnp.einsum("nv,nd->dv", to_logits, hidden, preferred_element_type=jnp.float32)
        return summed + outer, back

    by_token = jax.tree.map(lambda each: _chunks(each, size), (tokens, found, given))
    start = jnp.zeros(kernel.shape[::-1] if tied else kernel.shape, jnp.float32) if dtype else None
    summed, back = jax.lax.scan(body, start, (_chunks(hidden, size, 1), *by_token))
    back = _unchunked(back, hidden)
    back = jax.lax.psum(back, split.vocab) if split.vocab else back
    if summed is None:
        return back, None
    # [D, V], since TPUs scatter no minor axis
    summed = _reduced(summed.astype(dtype), split).astype(head.dtype)
    return back, summed.T if tied else summed


def _to_logits(logits: Float[Array, "n V"], tokens: Int[Array, " n"], found: Statistics,
               given: Statistics) -> Float[Array, "n V"]:
    """sum over the statistics s of g_s ds/dz_v, the cotangents g_s being `given`, None where a statistic is not used:

    dlogp = 1[v = token] - p_v, dentropy = -p_v (log p_v + entropy), dlog_z = p_v,
    dlog_collision = 2 p_v (p_v / sum p^2 - 1).
    """
    logps = logits - found.log_z[:, None]
    p = jnp.exp(logps)
    by_p, spread = jnp.zeros_like(found.log_z), jnp.zeros_like(logits)
    if given.logp is not None:
        by_p -= given.logp
    if given.log_z is not None:
        by_p += given.log_z
    if given.entropy is not None:
        spread -= given.entropy[:, None] * (logps + found.entropy[:, None])
    if given.log_collision is not None:
        spread += 2 * given.log_collision[:, None] * (p * jnp.exp(-found.log_collision)[:, None] - 1)
    gradient = p * (by_p[:, None] + spread)
    if given.logp is None:
        return gradient
    chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == tokens[:, None]
    return gradient + jnp.where(chosen, given.logp[:, None], 0.0)


def _logits(hidden: Float[Array, "n D"], kernel: Array, tied: bool) -> Float[Array, "n V"]:
    return jnp.einsum("nd,vd->nv" if tied else "nd,dv->nv", hidden, kernel, preferred_element_type=jnp.float32)


def _gathered(kernel: Array, split: Split, tied: bool) -> Array:
    """The device's part of the vocabulary, whole in the embedding."""
    return jax.lax.all_gather(kernel, split.embed, axis=1 if tied else 0, tiled=True) if split.embed else kernel


def _reduced(gradient: Float[Array, "D v"], split: Split) -> Float[Array, "d v"]:
    """Summed over the devices that have other rows, and of the embedding the device's own part."""
    for name in split.embed:  # the slowest axis first, as a partition spec has it
        if name in split.rows:
            gradient = jax.lax.psum_scatter(gradient, name, scatter_dimension=0, tiled=True)
        else:
            own = len(gradient) // jax.lax.axis_size(name)
            gradient = jax.lax.dynamic_slice_in_dim(gradient, jax.lax.axis_index(name) * own, own)
    rest = tuple(name for name in split.rows if name not in split.embed)
    return jax.lax.psum(gradient, rest) if rest else gradient


def _first_of_part(kernel: Array, split: Split, tied: bool) -> Array | int:
    """The token with which the device's part of the vocabulary begins."""
    return jax.lax.axis_index(split.vocab) * kernel.shape[0 if tied else 1] if split.vocab else 0


def _chunk(count: int, vocab_size: int, at_a_time: int) -> int:
    """Tokens of a chunk: as many as their logits may be, and serve; of even size."""
    largest = min(max(1, at_a_time // vocab_size), TOKENS_AT_A_TIME)
    return -(-count // -(-count // largest))


def _chunks(x: Array, size: int, features: int = 0) -> Array:
    """[B, T, ...] -> [chunks, size, ...]; the last chunk is filled up with zeros."""
    flat = x.reshape(-1, *x.shape[x.ndim - features:])
    fill = [(0, -len(flat) % size)] + [(0, 0)] * features
    return jnp.pad(flat, fill).reshape(-1, size, *flat.shape[1:])


def _unchunked(x: Array, like: Array) -> Array:
    """[chunks, size, ...] -> the shape of `like`."""
    return x.reshape(-1, *x.shape[2:])[: math.prod(like.shape[:2])].reshape(like.shape)
