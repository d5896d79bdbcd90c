"""A tiny MDP whose values are known: what GAE gives is exact on average, and every method finds the optimum."""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.prompts import Prompt
from objectives.advantages import ADVANTAGES
from objectives.ppo import configure_policy, value_loss
from rollouts.baselines import BASELINES
from rollouts.credit import GAE
from rollouts.episodes import Group
from rollouts.returns import gae, token_rewards

T = 3
STATES = [state for length in range(T) for state in itertools.product((0, 1), repeat=length)]
"""a state is what was drawn so far: 0 or 1, three times"""
ALL = np.asarray(list(itertools.product((0, 1), repeat=T)))
REWARDS = {(1, 1, 1): 1.0, (1, 0, 0): 0.4, (0, 1, 1): 0.6}


def reward(tokens):
    return REWARDS.get(tuple(tokens), 0.0)


def places(tokens):
    """Index [N, T] of the state before each token."""
    return np.asarray([[STATES.index(tuple(row[:t])) for t in range(T)] for row in tokens.tolist()])


def random_policy(seed=0):
    """Probability [S] of drawing 1."""
    return np.random.default_rng(seed).uniform(0.2, 0.8, len(STATES))


def exact_values(policy, gamma):
    """[S], and Q [S, 2], by recursion."""
    @functools.cache
    def value(state):
        return reward(state) / gamma if len(state) == T else sum(
            (p := policy[STATES.index(state)] if token else 1 - policy[STATES.index(state)]) and p * gamma * value(
                (*state, token)) for token in (0, 1))

    return (np.asarray([value(state) for state in STATES]),
            np.asarray([[gamma * value((*state, token)) for token in (0, 1)] for state in STATES]))


def chances(policy):
    """Of every episode [8]."""
    p = policy[places(ALL)]
    return np.prod(np.where(ALL == 1, p, 1 - p), axis=1)


def mean_by_action(by_token, policy):
    """The mean [S, 2] over episodes that take an action in a state."""
    weight, total = np.zeros((2, len(STATES), 2))
    for row, states, chance, values in zip(ALL, places(ALL), chances(policy), by_token):
        np.add.at(total, (states, row), chance * values)
        np.add.at(weight, (states, row), chance)
    return total / weight


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_on_average_advantages_are_exact(gamma, lam):
    """With the exact values whatever lambda is; at lambda 1 with any."""
    policy, mask = random_policy(), np.ones(ALL.shape)
    values, q = exact_values(policy, gamma)
    rewards = token_rewards(np.asarray([reward(row) for row in ALL]), mask)
    found = mean_by_action(gae(rewards, values[places(ALL)], mask, gamma, lam), policy)
    np.testing.assert_allclose(found, q - values[:, None], atol=1e-12)
    if lam == 1:
        wrong = values + np.random.default_rng(1).normal(size=values.shape)
        found = mean_by_action(gae(rewards, wrong[places(ALL)], mask, gamma, lam), policy)
        np.testing.assert_allclose(found, q - wrong[:, None], atol=1e-12)


# ------------------------------------------------------------------------------------------------- the optimum

@functools.cache
def updates():
    """(logits, values, their optimisers' states, batch) -> (logits, values, states) after 2 updates."""
    optimizer, policy_loss = optax.adam(0.05), configure_policy()

    def of_policy(logits, batch):
        logps = jnp.take_along_axis(jax.nn.log_softmax(logits)[batch["states"]], batch["tokens"][..., None], -1)[..., 0]
        loss = policy_loss(SimpleNamespace(logps=logps, entropy=jnp.zeros_like(logps)), batch)
        return loss.total / loss.weight

    def of_critic(values, batch):
        loss = value_loss(SimpleNamespace(values=values[batch["states"]]), batch)
        return loss.total / loss.weight

    @jax.jit
    def update(trained, states, batch):
        for _ in range(2):
            grads = tuple(jax.grad(loss)(each, batch) for loss, each in zip((of_policy, of_critic), trained))
            changes, states = optimizer.update(grads, states)
            trained = optax.apply_updates(trained, changes)
        return trained, states

    return optimizer, update


def draw(policy, count, random, tokens=None):
    tokens = np.zeros((count, T), int) if tokens is None else tokens
    for t in range(T):
        tokens[:, t] = random.random(count) < policy[places(tokens)[:, t]]
    return tokens


def credits(method, groups, batch, policy, random):
    if method == "gae":
        return GAE(gamma=1.0, lam=0.9, critic_lam=1.0)(groups, batch)
    if method in ADVANTAGES:
        rewards = batch["rewards"].reshape(len(groups), -1)
        return {"advantages": np.repeat(np.asarray(ADVANTAGES[method](rewards)).reshape(-1, 1), T, axis=1)}
    if method == "remax":
        batch["greedy_rewards"] = np.full(len(batch["rewards"]), reward(draw(np.round(policy), 1, random)[0]))
    if method == "vine":
        values, _ = exact_values(policy, 1.0)
        batch["prefix_values"] = values[batch["states"]] + 0.1 * random.normal(size=batch["states"].shape)
    given = BASELINES[method](groups, batch)["advantages"]
    return {"advantages": given if given.ndim > 1 else np.repeat(given[:, None], T, axis=1)}


METHODS = ("gae", *ADVANTAGES, *BASELINES)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_optimum(method):
    """And the critic the values of the policy that is there then."""
    optimizer, update = updates()
    random, groups = np.random.default_rng(0), [Group(number, Prompt([1], "a", {}), []) for number in range(8)]
    trained = jnp.zeros((len(STATES), 2)), jnp.zeros(len(STATES))
    states, mask = optimizer.init(trained), np.ones((64, T))
    for _ in range(150):
        policy = np.asarray(jax.nn.softmax(trained[0])[:, 1], np.float64)
        tokens = draw(policy, 64, random)
        rewards, at = np.asarray([reward(row) for row in tokens]), places(tokens)
        batch = {"loss_mask": mask, "rewards": rewards, "truncated": np.zeros(64), "states": at,
                 "values": np.asarray(trained[1])[at], "token_rewards": token_rewards(rewards, mask),
                 "old_logps": np.log(np.where(tokens == 1, policy[at], 1 - policy[at]))}
        credited = {"returns": np.zeros((64, T))} | credits(method, groups, dict(batch), policy, random)
        columns = {name: batch[name] for name in ("loss_mask", "old_logps", "values")} | credited
        on_device = {name: jnp.asarray(each, jnp.float32) for name, each in columns.items()}
        trained, states = update(trained, states, on_device | {
            "states": jnp.asarray(at), "tokens": jnp.asarray(tokens), "segment_ids": jnp.ones((64, T), jnp.int32)})
    policy = np.asarray(jax.nn.softmax(trained[0])[:, 1], np.float64)
    assert chances(policy)[-1] > 0.9  # 1, 1, 1
    if method == "gae":
        seen = [STATES.index(state) for state in ((), (1,), (1, 1))]
        np.testing.assert_allclose(np.asarray(trained[1])[seen], exact_values(policy, 1.0)[0][seen], atol=0.1)
