"""What is asked of the engine and what it gives back; what it refuses, each in one line."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from errors import InputError
from models.config import ModelConfig
from rollouts.decoder import LIKELIEST, STOPS
from rollouts.sampling import Controls, make_controls
from rollouts.stops import Ends

LARGEST_BIAS = 1e8
"""of a token's logit, which stays within float32 however small the temperature is that it is divided by"""

Mask = Callable[[Sequence[int]], np.ndarray]
"""a completion's tokens so far -> bool [V], True for those that may come next"""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of the model.

    What the engine keeps of a context that begins with the same tokens is gone on from, whichever request it is of: the
    prompt of a group, an earlier turn, a system prompt. The answer is the same without.
    """

    tokens: Sequence[int]
    """the context"""
    max_new_tokens: int
    key: Any
    """a key of jax.random, or its data; token i is drawn with fold_in(key, i)"""
    controls: Controls = Controls()
    ends: Ends = Ends()
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """is added to the logits of these tokens"""
    mask: Mask | None = None
    """tokens that may come next, for grammars; while such a request is decoded, each token returns to the host"""
    num_likeliest: int = 0
    """log-probabilities of so many of the likeliest tokens are wanted, under softmax(logits)"""


@dataclasses.dataclass
class Output:
    """What came of a request since the last step."""

    id: int
    tokens: list[int]
    logps: list[float]
    """of each token under the distribution it was drawn from; at temperature 0, under softmax(logits)"""
    version: int
    """of the weights"""
    finish_reason: str | None = None
    """"stop" (an end token or a stop string), "length", "error" (its mask or its stops failed), or None where more is
    to come"""
    likeliest: list[dict[int, float]] = dataclasses.field(default_factory=list)
    """of each token, where asked for: token -> log-probability"""
    plain_logps: list[float] = dataclasses.field(default_factory=list)
    """of each token, where the likeliest are asked for: under softmax(logits), as theirs are"""
    error: str | None = None
    """what failed, one line"""


def checked(request: Request, config: ModelConfig, cache_positions: int) -> Request:
    """The request in plain numbers. Raises InputError for one that cannot be answered; `cache_positions` is what the
    cache may hold of one context."""
    tokens = _integers("a prompt", request.tokens, 0, config.vocab_size - 1)
    max_new_tokens = _integer("max_new_tokens", request.max_new_tokens, 1)
    _check_length(len(tokens), max_new_tokens, config.max_length, cache_positions)
    if not (request.mask is None or callable(request.mask)):
        raise InputError(f"a mask is no function, but {_shown(request.mask)}; give one of the tokens so far")
    return dataclasses.replace(
        request, tokens=tokens, max_new_tokens=max_new_tokens, key=key_data(request.key), ends=_ends(request.ends),
        controls=_controls(request.controls), logit_bias=_bias(request.logit_bias, config.vocab_size),
        num_likeliest=_integer("num_likeliest", request.num_likeliest, 0, LIKELIEST))


def key_data(key: Any) -> np.ndarray:
    """The words of a key of jax.random, or of its data. Raises InputError for anything else, such as several keys."""
    is_key = isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(key) if is_key else key)
    if data.dtype != np.uint32 or data.shape != _key_shape():
        raise InputError(f"a request's key is no key of jax.random, but {_shown(key)}; give jax.random.key(seed)")
    return data


def fold_keys(key: Any, numbers: Sequence[int]) -> np.ndarray:
    """[N, W], data of fold_in(key, number) for each; compiled for each N."""
    return np.asarray(jax.random.key_data(_fold_in(key, np.asarray(numbers, np.uint32))))


_fold_in = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))


@functools.cache
def _key_shape() -> tuple[int, ...]:
    return jax.random.key_data(jax.random.key(0)).shape


def _check_length(prompt: int, new: int, context: int, cache_positions: int) -> None:
    both = f"a prompt of {prompt} tokens and {new} new ones do not fit"
    if not prompt:
        raise InputError("a prompt has no tokens; give at least one")
    if prompt + new > context:
        raise InputError(f"{both} the model's context of {context}; shorten the prompt or lower --max-new-tokens")
    if prompt + new > cache_positions:
        raise InputError(f"{both} a cache of {cache_positions} positions; give it more")


def _ends(ends: Ends) -> Ends:
    ids = _integers("end tokens", ends.ids, 0, 2**31 - 1)
    if len(ids) > STOPS:
        raise InputError(f"{len(ids)} end tokens are more than {STOPS}; leave some out")
    strings = [ends.strings] if isinstance(ends.strings, str) else ends.strings
    wrong = [string for string in strings if not isinstance(string, str) or not string]
    if wrong or isinstance(ends.strings, str):
        raise InputError(f"stop strings are {_shown(ends.strings)}; give a list of strings with a character or more")
    if strings and not callable(ends.decode):
        raise InputError("stop strings need the text of tokens; give Ends.decode")
    return Ends(ids, list(strings), ends.decode)


def _controls(controls: Controls) -> Controls:
    """As make_controls makes them. Raises InputError for what are no numbers."""
    for name, value in controls._asdict().items():
        kinds = "iu" if name == "top_k" else "iuf"
        if np.ndim(value) or np.asarray(value).dtype.kind not in kinds:
            raise InputError(f"{name.replace('_', '-')} must be a{' whole' * (kinds == 'iu')} number, not "
                             f"{_shown(value)}")
    return make_controls(*(int(value) if name == "top_k" else float(value)
                           for name, value in controls._asdict().items()))


def _bias(bias: Any, vocab_size: int) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise InputError(f"a logit bias is no mapping of tokens to numbers, but {_shown(bias)}")
    tokens = _integers("a logit bias", list(bias), 0, vocab_size - 1)
    for value in bias.values():
        number = np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"
        if not number or not abs(value) <= LARGEST_BIAS:
            raise InputError(f"a logit bias must be a number from {-LARGEST_BIAS:g} to {LARGEST_BIAS:g}, not "
                             f"{_shown(value)}")
    return dict(zip(tokens, map(float, bias.values())))


def _integers(what: str, values: Any, lowest: int, highest: int | None = None) -> list[int]:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError):  # lists of several lengths, most of all
        array = np.asarray(None)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"{what}: token ids are whole numbers in a list, not {_shown(values)}")
    wrong = array[(array < lowest) | (array > highest if highest is not None else False)]
    if wrong.size:
        beyond = f"and the model has those from {lowest} to {highest}" if highest is not None else "which is none"
        raise InputError(f"{what} has token {wrong[0]}, {beyond}")
    return array.tolist()


def _integer(name: str, value: Any, lowest: int, highest: int | None = None) -> int:
    whole = np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iu"
    if not whole or not lowest <= value <= (value if highest is None else highest):
        upwards = "or more" if highest is None else f"to {highest}"
        raise InputError(f"{name} is {_shown(value)}; give {lowest} {upwards}")
    return int(value)


def _shown(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:60]}..."
