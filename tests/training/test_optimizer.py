"""Schedules and weight decay."""

import jax.numpy as jnp
import numpy as np
import pytest

from errors import InputError
from training.optimizer import OptimizerConfig, decayed, make_optimizer, make_schedule


def test_cosine_rises_over_warmup_and_ends_at_zero():
    schedule = make_schedule(OptimizerConfig(warmup_steps=4), 1.0, 20)
    rates = [float(schedule(step)) for step in range(21)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[20] == pytest.approx(0, abs=1e-6)


def test_constant_stays():
    schedule = make_schedule(OptimizerConfig(schedule="constant", warmup_steps=2), 1.0, 20)
    assert [float(schedule(step)) for step in (2, 10, 19)] == [1.0, 1.0, 1.0]


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match="warmup_steps 20 must be fewer than --max-steps 20"):
        make_schedule(OptimizerConfig(warmup_steps=20), 1.0, 20)


def test_norms_and_biases_do_not_decay():
    params = {"norm": {"scale": jnp.ones(3)}, "q": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3), "a": jnp.ones(3)}}
    assert decayed(params) == {"norm": {"scale": False}, "q": {"kernel": True, "bias": False, "a": True}}
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.5), lambda step: 0.1)
    zeros = {"norm": {"scale": jnp.zeros(3)},
             "q": {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3), "a": jnp.zeros(3)}}
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert not np.any(updates["q"]["bias"])
    np.testing.assert_allclose(updates["q"]["kernel"], -0.05, rtol=1e-5)


def test_gradients_are_clipped_to_the_norm():
    big = {"q": {"kernel": jnp.full((2, 2), 100.0)}}
    states = []
    for norm in (1.0, 0.0):
        optimizer = make_optimizer(OptimizerConfig(max_grad_norm=norm), lambda step: 0.1)
        states.append(optimizer.update(big, optimizer.init(big), big)[1])
    clipped, free = (state[1][0].mu["q"]["kernel"][0, 0] for state in states)
    assert float(clipped) == pytest.approx(0.05, rel=1e-5)
    assert float(free) == pytest.approx(10.0, rel=1e-5)
