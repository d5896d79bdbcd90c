"""The sampler: completions by continuous batching, compiled, on the training mesh, from the training weights.

`slots` rows are decoded at a time. A prompt is prefilled once, and its cache is copied into the slots of its group; a
slot whose completion has ended takes the next one that waits; where none waits and few are left, they move to fewer
slots. So a batch is not paced by its longest completion.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from batch import bucket_length, buckets
from errors import InputError
from models import decoding
from models.transformer import Transformer
from rollouts.sampling import Controls, sample
from sharding.rules import RULES, ways

LOOKS = 16
"""tokens that are decoded between two looks for stop strings"""

REFILL = 16
"""slots are filled again once one in so many is free"""

TAIL = 4
"""where nothing waits, what is left is moved together once it fills one slot in so many"""

FEWEST = 8
"""slots below which decoding gets hardly faster: all weights are read for one row, too"""


class Completion(NamedTuple):
    """What one prompt was answered."""

    tokens: list[int]
    """the end token included, where one was sampled; up to the token that completes a stop string"""
    logps: list[float]
    """of each token under the distribution it was drawn from; at temperature 0, under softmax(logits)"""
    finish_reason: str
    """"stop" (an end token or a stop string) or "length" """


@dataclasses.dataclass(frozen=True)
class Ends:
    """What ends a completion besides its length."""

    ids: Sequence[int] = ()
    """end tokens"""
    strings: Sequence[str] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    """tokens to text; needed for strings"""

    def cut(self, tokens: Sequence[int]) -> int | None:
        """Tokens up to the one that completes the first stop string; None where there is none."""
        if not any(string in self.decode(tokens) for string in self.strings):
            return None
        return next(count for count in range(1, len(tokens) + 1)
                    if any(string in self.decode(tokens[:count]) for string in self.strings))


def make_ends(tokenizer: Any, strings: Sequence[str]) -> Ends:
    """The tokenizer's end tokens and stop strings; the text of a special token, which decoding leaves out, ends by its
    id. Raises InputError for an empty string."""
    if "" in strings:
        raise InputError("a stop string is empty; give at least one character, or none of them")
    ids = {string: tokenizer.encode(string) for string in strings}
    special = {string: each[0] for string, each in ids.items() if len(each) == 1 and not tokenizer.decode(each)}
    return Ends((*tokenizer.eos_ids, *special.values()), [string for string in strings if string not in special],
                tokenizer.decode)


@flax.struct.dataclass
class _Slots:
    """What S slots are decoding; a free one is done."""

    cache: decoding.Cache
    token: Int[Array, "S"]
    """read next: the prompt's last token, then what was drawn"""
    position: Int[Array, "S"]
    """of that token"""
    count: Int[Array, "S"]
    """tokens drawn"""
    limit: Int[Array, "S"]
    done: Array
    key: Key[Array, "S"]
    tokens: Int[Array, "S N"]
    logps: Float[Array, "S N"]


def generate(model: Transformer, variables: dict[str, Any], prompts: Sequence[Sequence[int]], key: Key[Array, ""], *,
             max_new_tokens: int | Sequence[int], controls: Controls, ends: Ends = Ends(), group_size: int = 1,
             slots: int = 16, longest: tuple[int, int] | None = None,
             advance: Callable[[int], None] = lambda count: None) -> list[Completion]:
    """`group_size` completions of each prompt, prompt by prompt; `max_new_tokens` for all, or for each completion.

    Completion i draws with fold_in(key, i), so it depends neither on its neighbours nor on `slots`. Shapes
    follow from `slots` and from `longest`: tokens of the longest prompt and completion, of these unless given; what is
    given alike is compiled once. `controls` may change freely. `advance` is told of completions as they finish.
    Raises InputError for a prompt without tokens, and for what does not fit the model's context.
    """
    total = len(prompts) * group_size
    limits = np.broadcast_to(np.asarray(max_new_tokens, np.int32), (total,))
    width, most = longest or (max(map(len, prompts)), int(limits.max()))
    check(model, prompts, width, most)
    if max(map(len, prompts)) > width or limits.max() > most:
        raise ValueError(f"longest is {longest}, but a prompt has {max(map(len, prompts))} tokens, or a completion may "
                         f"have {limits.max()}")
    weights = _prepare(model, variables)
    rows = _divisible(min(slots, total))
    plan = _Plan(model, weights, prompts, group_size, buckets(width), _divisible(max(1, rows // REFILL)))
    state = _empty(model, rows, plan.sizes[-1], most)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(total))
    return _run(plan, state, keys, limits, controls, ends, advance)


def check(model: Transformer, prompts: Sequence[Sequence[int]], width: int, most: int) -> None:
    """Raises InputError for prompts that cannot be answered."""
    if min(map(len, prompts)) == 0:
        raise InputError("a prompt has no tokens; give at least one")
    if width + most > model.config.max_length:
        raise InputError(f"a prompt of {width} tokens and {most} new ones do not fit the model's context of "
                         f"{model.config.max_length}; shorten the prompt or lower --max-new-tokens")


def _divisible(rows: int) -> int:
    """`rows`, rounded up so that they divide over the mesh in force."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else ways(RULES["batch"], mesh)
    return -(-rows // shards) * shards


# ------------------------------------------------------------------------------------------------------- the host

class _Plan:
    """Which completion comes next, and the prefilled prompt that it goes on from."""

    def __init__(self, model: Transformer, weights: Any, prompts: Sequence[Sequence[int]], group_size: int,
                 sizes: list[int], at_a_time: int):
        self.model, self.weights, self.prompts, self.sizes, self.at_a_time = model, weights, prompts, sizes, at_a_time
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))  # those of like length together
        self.chunks = iter([order[start : start + at_a_time] for start in range(0, len(order), at_a_time)])
        self.group_size, self.waiting = group_size, len(prompts) * group_size
        self.ready: list[tuple[int, int]] = []  # (completion, row of the caches prefilled last)

    def take(self, most: int) -> tuple[list[tuple[int, int]], decoding.Cache | None]:
        """Up to `most` completions of the prompts prefilled last; those of the next ones when these are used up."""
        if not self.ready and self.waiting:
            self._prefill(next(self.chunks))
        taken, self.ready = self.ready[:most], self.ready[most:]
        self.waiting -= len(taken)
        return taken, self.prefilled if taken else None

    def _prefill(self, numbers: list[int]) -> None:
        longest = max(len(self.prompts[number]) for number in numbers)
        tokens = np.zeros((self.at_a_time, bucket_length(longest, self.sizes)), np.int32)
        for row, number in enumerate(numbers):
            tokens[row, : len(self.prompts[number])] = self.prompts[number]
        self.prefilled = _prefill(self.model, self.weights, tokens)
        self.ready = [(number * self.group_size + member, row)
                      for row, number in enumerate(numbers) for member in range(self.group_size)]


def _run(plan: _Plan, state: _Slots, keys: Key[Array, "R"], limits: np.ndarray, controls: Controls, ends: Ends,
         advance: Callable[[int], None]) -> list[Completion]:
    """Fills slots, decodes, takes what is done out, until nothing waits and nothing is left to decode."""
    end_ids = np.asarray(sorted(ends.ids) or [-1], np.int32)
    at: list[int | None] = [None] * len(state.done)  # the completion in each slot
    found: list[Completion | None] = [None] * len(limits)
    few = min(len(at), _divisible(max(FEWEST, len(at) // TAIL)))
    while plan.waiting or any(number is not None for number in at):
        state = _fill(plan, state, at, keys, limits)
        if not plan.waiting:
            state, at = _shrink(state, at, few)
        state = _decode(plan.model, plan.weights, state, controls, end_ids, np.int32(_patience(plan, at, few)),
                        np.int32(LOOKS if ends.strings else np.iinfo(np.int32).max))
        out = jax.device_get(_everywhere((state.done, state.count, state.tokens, state.logps)))
        finished = dict(_finished(out, at, end_ids, ends))
        for slot, completion in finished.items():
            found[at[slot]], at[slot] = completion, None
        advance(len(finished))
        if ends.strings:  # what a stop string ended is not done yet on the device
            free = np.asarray([number is None for number in at])
            state = state.replace(done=jnp.asarray(free))
    return found


def _patience(plan: _Plan, at: Sequence[int | None], few: int) -> int:
    """Slots that must be free before decoding is interrupted: to fill them, or to do with `few`; else all."""
    if plan.waiting:
        return max(1, len(at) // REFILL)
    return len(at) - few if len(at) > few else len(at)


def _shrink(state: _Slots, at: list[int | None], few: int) -> tuple[_Slots, list[int | None]]:
    """`few` slots, with all that is still decoded, where there are more and it fits."""
    held = [slot for slot, number in enumerate(at) if number is not None]
    if not len(held) <= few < len(at):
        return state, at
    free = few - len(held)
    return _gather(state, np.asarray(held + held[:1] * free), np.arange(few) >= len(held)), \
        [at[slot] for slot in held] + [None] * free


def _finished(out: Any, at: Sequence[int | None], end_ids: np.ndarray, ends: Ends) -> Iterator[tuple[int, Completion]]:
    """(slot, completion) of those that have ended."""
    done, count, tokens, logps = out
    for slot, number in enumerate(at):
        if number is None:
            continue
        drawn = tokens[slot, : count[slot]].tolist()
        cut = ends.cut(drawn) if ends.strings else None
        if cut is None and not done[slot]:
            continue
        stopped = cut is not None or drawn[-1] in end_ids
        yield slot, Completion(drawn[:cut], logps[slot, : count[slot]].tolist()[:cut], "stop" if stopped else "length")


def _fill(plan: _Plan, state: _Slots, at: list[int | None], keys: Key[Array, "R"], limits: np.ndarray) -> _Slots:
    """Puts waiting completions into free slots, a few of the same prefilled prompts at once."""
    few = plan.at_a_time
    while free := [slot for slot, number in enumerate(at) if number is None]:
        taken, prefilled = plan.take(min(few, len(free)))
        if not taken:
            break
        slots, rows = np.full(few, len(at), np.int32), np.zeros(few, np.int32)  # one past the end: dropped
        slots[: len(taken)], rows[: len(taken)] = free[: len(taken)], [row for _, row in taken]
        numbers = np.zeros(few, np.int32)
        numbers[: len(taken)] = [number for number, _ in taken]
        prompts = [plan.prompts[number // plan.group_size] for number in numbers]
        lasts = np.asarray([[prompt[-1], len(prompt) - 1] for prompt in prompts], np.int32)
        state = _admit(state, prefilled, slots, rows, lasts, limits[numbers], keys[numbers])
        for slot, (number, _) in zip(free, taken, strict=False):
            at[slot] = number
    return state


# ------------------------------------------------------------------------------------------------------ the device

def _everywhere(drawn: Any) -> Any:
    """What was drawn where every process can read it."""
    if jax.process_count() == 1:
        return drawn
    return jax.jit(lambda tree: tree, out_shardings=jax.sharding.PartitionSpec())(drawn)


@functools.partial(jax.jit, static_argnums=0)
def _prepare(model: Transformer, variables: Any) -> decoding.Weights:
    return decoding.prepare(model, variables)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _empty(model: Transformer, rows: int, width: int, most: int) -> _Slots:
    zeros = jnp.zeros(rows, jnp.int32)
    return _Slots(decoding.init_cache(model.config, rows, width + most), zeros, zeros, zeros, zeros,
                  jnp.ones(rows, bool), jax.random.split(jax.random.key(0), rows), jnp.zeros((rows, most), jnp.int32),
                  jnp.zeros((rows, most)))


@functools.partial(jax.jit, static_argnums=0)
def _prefill(model: Transformer, weights: decoding.Weights, tokens: Int[Array, "P W"]) -> decoding.Cache:
    """Caches of whole prompts, padded at the end."""
    cache = decoding.init_cache(model.config, *tokens.shape)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return decoding.forward(model.config, weights, cache, tokens, positions)[1]


@functools.partial(jax.jit, donate_argnums=0)
def _admit(state: _Slots, prefilled: decoding.Cache, slots: Int[Array, "A"], rows: Int[Array, "A"],
           lasts: Int[Array, "A 2"], limits: Int[Array, "A"], keys: Key[Array, "A"]) -> _Slots:
    """Copies the caches of prefilled `rows` into `slots`, which begin with their prompts' last token and position."""
    def copy(into: Array, source: Array) -> Array:
        return into.at[slots, :, : source.shape[2]].set(source[rows], mode="drop")

    def put(into: Array, values: Any) -> Array:
        return into.at[slots].set(values, mode="drop")

    return state.replace(
        cache=jax.tree.map(copy, state.cache, prefilled), token=put(state.token, lasts[:, 0]),
        position=put(state.position, lasts[:, 1]), count=put(state.count, 0), limit=put(state.limit, limits),
        done=put(state.done, False), key=put(state.key, keys))


@jax.jit
def _gather(state: _Slots, slots: Int[Array, "F"], done: Array) -> _Slots:
    """The state of `slots`, `done` where they are only repeated."""
    state = jax.tree.map(lambda each: each[slots], state)
    return state.replace(done=state.done | done)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _decode(model: Transformer, weights: decoding.Weights, state: _Slots, controls: Controls, ends: Int[Array, "E"],
            patience: Int[Array, ""], steps: Int[Array, ""]) -> _Slots:
    """Decodes until `patience` slots are done, all are, or `steps` tokens were drawn."""
    rows = jnp.arange(len(state.done))

    def step(carry: tuple[Array, _Slots]) -> tuple[Array, _Slots]:
        made, at = carry
        hidden, cache = decoding.forward(model.config, weights, at.cache, at.token[:, None], at.position[:, None])
        keys = jax.vmap(jax.random.fold_in)(at.key, at.count)
        token, logp = sample(decoding.project(model.config, weights, hidden[:, 0]), keys, controls)
        column = jnp.where(at.done, at.tokens.shape[1], at.count)  # past the end: dropped
        count = at.count + ~at.done
        return made + 1, at.replace(
            cache=cache, token=jnp.where(at.done, at.token, token), position=at.position + ~at.done, count=count,
            done=at.done | jnp.isin(token, ends) | (count >= at.limit),
            tokens=at.tokens.at[rows, column].set(token, mode="drop"),
            logps=at.logps.at[rows, column].set(logp, mode="drop"))

    def goes_on(carry: tuple[Array, _Slots]) -> Array:
        made, at = carry
        return (made < steps) & (jnp.sum(at.done) < patience) & ~jnp.all(at.done)

    return jax.lax.while_loop(goes_on, step, (jnp.zeros((), jnp.int32), state))[1]
