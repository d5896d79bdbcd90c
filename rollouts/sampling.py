"""Drawing tokens: softmax(logits / temperature), cut to the likeliest tokens by top-k, top-p and min-p."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from errors import InputError

BLOCK = 128
"""tokens whose masses are added up first, so that a draw does not run through the whole vocabulary"""


SMALLEST_TEMPERATURE = 1e-30
"""what is smaller counts as 0: logits divided by it would leave float32, and only the likeliest token is ever drawn"""

LARGEST = float(np.finfo(np.float32).max)
PENALTY = 128.0
"""the largest penalty: logits stay within float32 whatever else is asked for, however small the temperature"""


class Controls(NamedTuple):
    """How tokens are drawn: numbers for all rows, or [B]. Arrays to the compiler: a change compiles nothing anew."""

    temperature: ArrayLike = np.float32(1.0)
    """of softmax(logits / temperature); 0 takes the likeliest token and no notice of the three below"""
    top_k: ArrayLike = np.int32(0)
    """so many of the likeliest tokens are left; 0 for all"""
    top_p: ArrayLike = np.float32(1.0)
    """the likeliest tokens that together reach this probability are left (Holtzman et al. 2019, arXiv:1904.09751)"""
    min_p: ArrayLike = np.float32(0.0)
    """tokens at least this share as probable as the likeliest are left (Nguyen et al. 2024, arXiv:2407.01082)"""
    repetition_penalty: ArrayLike = np.float32(1.0)
    """logits of tokens that prompt or completion have are divided by it where positive, multiplied where negative
    (Keskar et al. 2019, arXiv:1909.05858)"""
    presence_penalty: ArrayLike = np.float32(0.0)
    """is taken from the logits of tokens that the completion has"""
    frequency_penalty: ArrayLike = np.float32(0.0)
    """is taken from a token's logit each time that the completion has it"""

    @property
    def penalises(self) -> bool:
        """Whether a penalty is in force; of numbers."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


def make_controls(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
                  repetition_penalty: float = 1.0, presence_penalty: float = 0.0,
                  frequency_penalty: float = 0.0) -> Controls:
    """Raises InputError for values that leave no distribution, or that their types do not hold."""
    largest = np.iinfo(np.int32).max
    found = [(not 0 <= temperature <= LARGEST, f"temperature must be 0 or more, not {temperature}"),
             (top_k < 0, f"top-k must be 0 (all tokens) or more, not {top_k}"),
             (top_k > largest, f"top-k must be {largest} at the most, not {top_k}"),
             (not 0 < top_p <= 1 or np.float32(top_p) == 0,
              f"top-p must be above 0 and at most 1 (all tokens), not {top_p}"),
             (not 0 <= min_p <= 1, f"min-p must be from 0 (all tokens) to 1, not {min_p}"),
             (not 1 / PENALTY <= repetition_penalty <= PENALTY,
              f"repetition-penalty must be from {1 / PENALTY:g} to {PENALTY:g}, not {repetition_penalty}"),
             *((not -PENALTY <= penalty <= PENALTY,
                f"{name}-penalty must be from {-PENALTY:g} to {PENALTY:g}, not {penalty}")
               for name, penalty in (("presence", presence_penalty), ("frequency", frequency_penalty)))]
    problems = [message for wrong, message in found if wrong]
    if problems:
        raise InputError(problems[0])
    return Controls(np.float32(effective_temperature(temperature)), np.int32(top_k), *(np.float32(each) for each in (
        top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty)))


def effective_temperature(temperature: float) -> float:
    """The temperature, or 0 where it is too small for float32 to divide by."""
    return 0.0 if abs(temperature) < SMALLEST_TEMPERATURE else temperature


def sample(logits: Float[Array, "B V"], keys: Key[Array, "B"],
           controls: Controls) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """A token a row, and its log-probability under the distribution that it was drawn from.

    At temperature 0 the likeliest token, and its log-probability under softmax(logits).
    """
    controls = _of_rows(controls, logits)
    greedy = controls.temperature == 0
    scaled = logits / jnp.where(greedy, 1.0, controls.temperature)[:, None]
    cut = ~greedy & ((controls.top_k > 0) | (controls.top_p < 1) | (controls.min_p > 0))
    kept = jax.lax.cond(jnp.any(cut), lambda: jnp.where(cut[:, None], truncate(scaled, controls), scaled),
                        lambda: scaled)
    shifted = kept - jnp.max(kept, axis=-1, keepdims=True)
    masses = jnp.exp(shifted)
    drawn = jax.lax.cond(jnp.all(greedy), lambda: jnp.zeros(greedy.shape, jnp.int32), lambda: draw(masses, keys))
    drawn = jax.lax.cond(jnp.any(greedy), lambda: jnp.where(
        greedy, jnp.argmax(logits, axis=-1).astype(jnp.int32), drawn), lambda: drawn)
    logps = jnp.take_along_axis(shifted, drawn[:, None], axis=-1)[:, 0] - jnp.log(jnp.sum(masses, axis=-1))
    return drawn, logps


def penalise(logits: Float[Array, "B V"], in_prompt: Bool[Array, "B V"], count: Int[Array, "B V"],
             controls: Controls) -> Float[Array, "B V"]:
    """Logits less what controls of [B] take for tokens that the prompt has, or the completion `count` times."""
    repetition = controls.repetition_penalty[:, None]
    again = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(in_prompt | (count > 0), again, logits)
    return logits - controls.presence_penalty[:, None] * (count > 0) - controls.frequency_penalty[:, None] * count


def draw(masses: Float[Array, "B V"], keys: Key[Array, "B"]) -> Int[Array, "B"]:
    """A token a row with probability masses / sum(masses): where a uniform number falls among their running sums.

    One number a row, where adding Gumbel noise needs one a token. First the block of tokens is found, then the token.
    """
    batch, vocab = masses.shape
    blocks = jnp.pad(masses, ((0, 0), (0, -vocab % BLOCK))).reshape(batch, -1, BLOCK)
    ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = jax.vmap(jax.random.uniform)(keys) * ends[:, -1]
    block = _find(ends, target)
    before = jnp.where(block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], axis=-1)[:, 0], 0.0)
    inside = jnp.cumsum(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    return (block * BLOCK + _find(inside, target - before)).astype(jnp.int32)


def _find(ends: Float[Array, "B N"], target: Float[Array, "B"]) -> Int[Array, "B"]:
    """The first place whose running sum exceeds the target; never one of mass 0, however the sums were rounded."""
    last = jnp.sum(ends < ends[:, -1:], axis=-1)
    return jnp.minimum(jnp.sum(ends <= target[:, None], axis=-1), last)


def truncate(logits: Float[Array, "B V"], controls: Controls) -> Float[Array, "B V"]:
    """-inf for tokens that top-k, then top-p of what it left, then min-p cut off. Equal logits stay or go together.
    """
    controls = _of_rows(controls, logits)
    logits = jax.lax.cond(jnp.any(controls.top_k > 0), _top_k, lambda logits, _: logits, logits, controls.top_k)
    logits = jax.lax.cond(jnp.any(controls.top_p < 1), _top_p, lambda logits, _: logits, logits, controls.top_p)
    floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(controls.min_p)[:, None]
    return jnp.where(logits >= floor, logits, -jnp.inf)


def _of_rows(controls: Controls, logits: Float[Array, "B V"]) -> Controls:
    return jax.tree.map(lambda each: jnp.broadcast_to(each, logits.shape[:1]), controls)


def _top_k(logits: Float[Array, "B V"], top_k: Int[Array, "B"]) -> Float[Array, "B V"]:
    wanted = jnp.where(top_k > 0, top_k, logits.shape[-1])
    return _keep_from_threshold(logits, lambda kept: jnp.sum(kept, axis=-1) >= wanted)


def _top_p(logits: Float[Array, "B V"], top_p: Float[Array, "B"]) -> Float[Array, "B V"]:
    probabilities = jax.nn.softmax(logits, axis=-1)
    cut = _keep_from_threshold(
        logits, lambda kept: jnp.sum(jnp.where(kept, probabilities, 0.0), axis=-1) >= top_p)
    return jnp.where((top_p < 1)[:, None], cut, logits)


def _keep_from_threshold(logits: Float[Array, "B V"],
                         enough: Callable[[Bool[Array, "B V"]], Bool[Array, "B"]]) -> Float[Array, "B V"]:
    """The logits from a threshold on, the highest one for which those kept are `enough`; the others -inf.

    The threshold is found bit by bit: 32 passes over the logits, which is less than sorting them.
    """
    order = _as_ordered_integers(logits)

    def narrow(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # enough at low, not enough at high
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, which does not overflow
        fits = enough(order >= middle[:, None])
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    limits = jnp.iinfo(jnp.int32)
    start = jnp.full(logits.shape[:1], limits.min), jnp.full(logits.shape[:1], limits.max)
    low, _ = jax.lax.fori_loop(0, 32, narrow, start)
    return jnp.where(order >= low[:, None], logits, -jnp.inf)


def _as_ordered_integers(x: Float[Array, "B V"]) -> Int[Array, "B V"]:
    """int32 in the order of the float32 numbers."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
