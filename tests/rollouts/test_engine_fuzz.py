"""Requests that come, are cancelled and fail at random, beside others and over other weights: each that is answered is
answered as by a fresh engine that has it alone, and no slot and no page is lost."""

import contextlib
import random
from collections import Counter

import jax
import numpy as np
import pytest
from tiny import CONFIG, random_variables

from errors import InputError
from models.transformer import Transformer
from rollouts import decoder
from rollouts.engine import Engine, Request
from rollouts.sampling import make_controls
from rollouts.stops import Ends
from sharding.mesh import MeshConfig, make_layout

MODEL = Transformer(CONFIG)
WEIGHTS = [random_variables(seed=seed) for seed in (0, 1)]
BASES = [[draw.randrange(64) for _ in range(30)] for draw in map(random.Random, range(3))]


def engine_with(weights, version=0, shares=1):
    engine = Engine(MODEL, 3 * shares, 136 * shares, 8, make_layout(MeshConfig(shares), jax.devices()[:shares]))
    engine.load(WEIGHTS[weights], version)
    return engine


def decode(tokens):
    return "".join(chr(ord("0") + token) for token in tokens)


def failing_mask(after):
    def mask(tokens):
        if len(tokens) >= after:
            raise LookupError("no such rule")
        return np.arange(64) % 2 == len(tokens) % 2

    return mask


def some_request(draw):
    """Of contexts that begin alike, with any of what may be asked for."""
    base = draw.choice(BASES)
    prompt = base[: draw.randint(1, 30)] + [draw.randrange(64) for _ in range(draw.choice([0, 0, 1, 3]))]
    rest = draw.choice([
        {}, {}, {"controls": make_controls(0.0)}, {"controls": make_controls(0.7, top_k=5, repetition_penalty=1.2)},
        {"ends": Ends((1, 2, 3))}, {"ends": Ends((), [decode([draw.randrange(64)])], decode)}, {"num_likeliest": 2},
        {"logit_bias": {draw.randrange(64): 3.0}}, {"mask": failing_mask(draw.randint(0, 4))},
        {"mask": failing_mask(99)}])
    return Request(prompt, draw.randint(1, 30), jax.random.key(draw.randrange(10**6)), **rest)


def broken(request, **change):
    """With what its own types do not allow."""
    request = Request(**vars(request))
    for name, value in change.items():
        object.__setattr__(request, name, value)
    return request


def some_broken_request(draw):
    return broken(some_request(draw), **draw.choice([
        {"tokens": []}, {"tokens": [64]}, {"tokens": [1.5]}, {"max_new_tokens": 0}, {"max_new_tokens": 200},
        {"key": 7}, {"controls": make_controls()._replace(temperature=np.nan)}, {"logit_bias": {64: 1.0}}]))


def assert_nothing_is_lost(engine):
    """Each page has as many users as there are, and is free, known, or in use."""
    for share, pages in enumerate(engine._slots.pages):
        mine = [each for slot, each in engine._slots.running.items() if slot // engine._slots.of_share == share]
        users = Counter(page for each in mine for page in each.pages)
        assert pages._users == [users[page] for page in range(pages.count)]
        assert len(set(pages._free)) == len(pages._free)
        known = {page for page in pages._nodes if not users[page]}
        assert not known & set(pages._free)
        assert known | set(pages._free) | users.keys() == set(range(pages.count))
        assert sorted([*engine._slots._free[share], *(each.slot for each in mine)]) == list(
            range(share * engine._slots.of_share, (share + 1) * engine._slots.of_share))


def collect(found, outputs):
    for output in outputs:
        tokens, logps, _, _ = found.get(output.id, ([], [], None, None))
        found[output.id] = (tokens + output.tokens, logps + output.logps, output.finish_reason, output.error)


def alone(request, weights):
    engine, found = engine_with(weights), {}
    [identity] = engine.submit([request])
    while engine.busy:
        collect(found, engine.step())
    return found[identity]


def play(seed, monkeypatch, shares=1, count=60):
    """By id: (request, weights, or None where these changed meanwhile), and the answers."""
    draw, weights, submitted, found = random.Random(seed), 0, {}, {}
    engine = engine_with(weights, shares=shares)

    def ended(identity):
        return identity in found and found[identity][2] is not None

    def fail(*given):
        monkeypatch.undo()
        jax.tree.map(lambda leaf: leaf.delete(), given[2])  # as a call that was given its memory and failed
        raise RuntimeError("out of memory")

    for at in range(count):
        what = draw.choices(["submit", "step", "cancel", "load", "broken", "fail"], [6, 12, 2, 1, 1, 1])[0]
        if what == "submit":
            requests = [some_request(draw) for _ in range(draw.randint(1, 3))]
            submitted |= {identity: (each, weights) for identity, each in zip(engine.submit(requests), requests)}
        elif what == "cancel":
            gone = draw.sample(sorted(submitted), min(2, len(submitted)))
            engine.cancel([*gone, 10**9])
            submitted = {identity: each for identity, each in submitted.items()
                         if identity not in gone or ended(identity)}
        elif what == "load":
            weights = 1 - weights
            engine.load(WEIGHTS[weights], at)
            submitted = {identity: each if ended(identity) else (each[0], None) for identity, each in submitted.items()}
        elif what == "broken":
            with pytest.raises(InputError):
                engine.submit([some_request(draw), some_broken_request(draw)])
        else:
            if what == "fail":
                monkeypatch.setattr(decoder, draw.choice(["decode", "prefill"]), fail)
            with contextlib.suppress(RuntimeError):
                collect(found, engine.step())
        assert_nothing_is_lost(engine)
    monkeypatch.undo()
    while engine.busy:
        collect(found, engine.step())
        assert_nothing_is_lost(engine)
    engine.forget()
    assert [pages.available for pages in engine._slots.pages] == [len(pages._free) for pages in engine._slots.pages]
    return submitted, found


@pytest.mark.parametrize(("seed", "shares"), [
    (0, 1),
    *(pytest.param(seed, shares, marks=pytest.mark.slow) for shares in (1, 2) for seed in range(1, 16))])
def test_each_is_answered_as_if_alone(seed, shares, monkeypatch):
    submitted, found = play(seed, monkeypatch, shares)
    compared = 0
    for identity, (request, weights) in submitted.items():
        tokens, logps, reason, error = found[identity]
        assert reason in ("stop", "length", "error")
        if weights is None:
            continue
        expected = alone(request, weights)
        assert (tokens, reason, error) == (expected[0], *expected[2:])
        np.testing.assert_allclose(logps, expected[1], atol=1e-5)
        compared += 1
    assert compared > 2
