"""From a body to the requests of its completions: controls, keys, stops and grammar of each."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from errors import InputError
from rollouts.engine import Request
from rollouts.requests import LARGEST_BIAS, fold_keys
from rollouts.sampling import Controls, make_controls
from rollouts.stops import Ends, make_ends
from serving.grammar import Grammars
from serving.schemas import Sampling
from serving.served import check_choices
from serving.work import SampleRequest

SEEDS = 2**32
"""a seed is taken modulo this, so that any whole number is one"""
MAX_STOPS = 64
"""stop strings of a request"""


def make_samples(body: Sampling, prompts: Sequence[Sequence[int]], limits: Sequence[int], num_likeliest: int,
                 grammar: str | None = None) -> list[SampleRequest]:
    """`n` samples of each prompt, prompt by prompt. Sample i has the key of completion i of scripts.generate with the
    same seed; without a seed, any. Raises InputError for controls that leave no distribution."""
    controls, n = _controls(body), body.n or 1
    check_choices(len(prompts) * n)
    keys = _keys(body.seed, len(prompts) * n)
    sample = SampleRequest([], 0, [], controls, stop_strings(body), body.stop_token_ids or [], bool(body.ignore_eos),
                           _bias(body), num_likeliest, grammar)
    return [sample._replace(tokens=list(prompts[number // n]), max_new_tokens=limits[number // n], key=key)
            for number, key in enumerate(keys)]


def stop_strings(body: Sampling) -> list[str]:
    """Raises InputError for too many."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or ()
    if len(stops) > MAX_STOPS:
        raise InputError(f"{len(stops)} stop strings are more than {MAX_STOPS}; leave some out")
    return [stop for stop in stops if stop is not None]


def _controls(body: Sampling) -> list[float]:
    given = {name: getattr(body, name) for name in Controls._fields}
    given["top_k"] = 0 if given["top_k"] == -1 else given["top_k"]  # vLLM's "all"
    controls = make_controls(**{name: value for name, value in given.items() if value is not None})
    return [each.item() for each in controls]


def _keys(seed: int | None, count: int) -> list[list[int]]:
    """Data of fold_in(key(seed), i), i < count, on the host's CPU; few counts are compiled."""
    seed = secrets.randbelow(SEEDS) if seed is None else seed % SEEDS
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        numbers = range(1 << (count - 1).bit_length())
        return fold_keys(jax.random.key(seed), numbers)[:count].tolist()


def _bias(body: Sampling) -> list[tuple[int, float]]:
    bias = body.logit_bias or {}
    wrong = next((token for token, value in bias.items() if not token.isdecimal() or len(token) > len(str(2**31))
                  or type(value) not in (int, float) or not abs(value) <= LARGEST_BIAS), None)
    if wrong is not None:
        raise InputError(f"logit_bias maps token ids to numbers from {-LARGEST_BIAS:g} to {LARGEST_BIAS:g}; mend "
                         f"{wrong[:40]!r}: {str(bias[wrong])[:40]!r}")
    return [(int(token), float(value)) for token, value in bias.items()]


def request_maker(tokenizer: Any, grammars: Grammars) -> Callable[[SampleRequest], Request]:
    """What makes the engine's request of a sample, in every process."""

    def make_request(sample: SampleRequest) -> Request:
        ends = Ends() if tokenizer is None else make_ends(tokenizer, sample.stop)
        own = () if sample.ignore_eos else ends.ids[: len(ends.ids)]
        ids = dict.fromkeys([*own, *sample.stop_ids])
        mask = None if sample.grammar is None else grammars.mask(sample.grammar)
        ends = Ends([*ids], ends.strings, ends.decode)
        return Request(sample.tokens, sample.max_new_tokens, np.asarray(sample.key, np.uint32),
                       Controls(*sample.controls), ends, dict(sample.logit_bias), mask, sample.num_likeliest)

    return make_request
