"""Between rollouts and updates: groups that are replaced, several updates of one batch, the KL in the reward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIG, LORA, one_device, variables_on

from data.prompts import Prompt
from models.transformer import Transformer
from objectives.grpo import grpo
from rollouts.generate import Completion
from rollouts.online import draw_groups, make_scorer, penalise, put_minibatches, time_shares
from rollouts.rollout import Rollouts, to_batch
from sharding.mesh import MeshConfig, make_mesh
from sharding.placement import Placement
from training.reference import prepare_batch_of_rollouts
from training.state import init_state
from training.step import make_train_step, make_updates

WIDTH, GROUP, SCHEDULE = 8, 2, optax.constant_schedule(1e-2)


def rollouts(rewards, first=0, seed=0):
    """Random prompts, numbered from `first`, and completions, with these rewards."""
    random, rewards = np.random.default_rng(seed), np.asarray(rewards, float)
    prompts = [Prompt(random.integers(0, 64, random.integers(2, 8)).tolist(), str(first + number), {})
               for number in range(len(rewards))]
    lengths = random.integers(1, 9, rewards.size)
    completions = [Completion(random.integers(0, 64, size).tolist(), (-random.exponential(size=size)).tolist(), "stop")
                   for size in lengths]
    return Rollouts(prompts, completions, [str(row) for row in range(rewards.size)], {"r": rewards.ravel().tolist()},
                    rewards, [], {"rollout": 1.0, "reward": 0.5})


# ------------------------------------------------------------------------------------------------ dynamic sampling

def drawn(draws, max_tries):
    """draw_groups where try n gives rewards draws[n], prompts being numbered 10 n, 10 n + 1, ..."""
    asked = []

    def roll(prompts, number):
        asked.append(prompts)
        return rollouts(draws[number], 10 * number)

    return draw_groups(["first"] * 2, lambda: ["more"] * 2, roll, max_tries), [prompts[0] for prompts in asked]


def used(drawn, numbers):
    return [prompt.text for prompt in drawn.take(numbers).prompts]


def test_groups_without_spread_are_replaced_in_order():
    (everything, numbers), asked = drawn([[[1, 1], [0, 1]], [[0, 0], [2, 1]], [[5, 6], [7, 8]]], max_tries=5)
    assert used(everything, numbers) == ["1", "11"]
    assert [prompt.text for prompt in everything.prompts] == ["0", "1", "10", "11"]
    assert asked == ["first", "more"], "no draw beyond what is needed"
    assert everything.seconds == {"rollout": 2.0, "reward": 1.0}


def test_after_the_last_draw_flat_groups_fill_up():
    (everything, numbers), asked = drawn([[[1, 1], [0, 1]], [[0, 0], [3, 3]]], max_tries=2)
    assert used(everything, numbers) == ["1", "0"]
    assert len(asked) == 2


def test_one_draw_replaces_nothing():
    (everything, numbers), asked = drawn([[[1, 1], [0, 1]]], max_tries=1)
    assert used(everything, numbers) == ["0", "1"]
    assert asked == ["first"]


# --------------------------------------------------------------------------------------------------------- updates

def begin(mesh, lora=LORA):
    model = Transformer(CONFIG, lora)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(SCHEDULE))
    state = init_state(model, variables_on(mesh)["params"], optimizer, jax.random.key(3), mesh)
    return model, optimizer, state


def put(rolled, placement, count):
    columns = to_batch(rolled, WIDTH, 8) | {"advantages": rolled.rewards.astype(np.float32).ravel()}
    return put_minibatches(columns, placement, count)


def updated(mesh, placement, num_minibatches=1, num_epochs=1, settings=None, old=False):
    """(trainable weights, metrics) after one batch of rollouts."""
    rolled = rollouts(np.random.default_rng(1).normal(size=(4, GROUP)))
    with jax.set_mesh(mesh):
        model, optimizer, state = begin(mesh)
        scorer = make_scorer(GROUP, WIDTH, 0.9)
        objective = functools.partial(grpo, **settings or {})
        step = make_train_step(model, objective, optimizer, SCHEDULE, state, scorer)
        batch = put(rolled, placement, num_minibatches)
        batch = prepare_batch_of_rollouts(model, model, None, mesh, scorer, old=old)(state, batch)
        state, metrics = make_updates(step, state, num_minibatches, num_epochs)(state, batch)
    assert int(state.step) == 1
    return jax.device_get(state.lora), {name: float(value) for name, value in metrics.items()}


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    for name in ("loss", "entropy", "grad_norm", "sampling/logp_difference/max", "sampling/importance_ratio/min"):
        assert one[1][name] == pytest.approx(other[1][name], rel=1e-3, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_micro_batches_and_meshes_change_nothing(aggregation):
    settings, alone = {"loss_aggregation": aggregation, "beta": 0.1, "kl": "k2"}, one_device()
    whole = updated(alone, Placement(4, 1, alone, GROUP), settings=settings)
    assert_same(updated(alone, Placement(4, 4, alone, GROUP), settings=settings), whole)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    assert_same(updated(mesh, Placement(4, 1, mesh, GROUP), settings=settings), whole)


@pytest.mark.slow
def test_minibatches_are_updates_of_their_own_one_after_the_other():
    mesh = one_device()
    placement = Placement(2, 1, mesh, GROUP)
    trained, metrics = updated(mesh, placement, num_minibatches=2, num_epochs=2, old=True)
    assert metrics["num_tokens"] == 2 * updated(mesh, Placement(4, 1, mesh, GROUP))[1]["num_tokens"]
    rolled = rollouts(np.random.default_rng(1).normal(size=(4, GROUP)))
    with jax.set_mesh(mesh):
        model, optimizer, state = begin(mesh)
        scorer = make_scorer(GROUP, WIDTH, 0.9)
        step = make_train_step(model, grpo, optimizer, SCHEDULE, state, scorer)
        batch = prepare_batch_of_rollouts(model, None, None, mesh, scorer, old=True)(state, put(rolled, placement, 2))
        for number in (0, 1, 0, 1):
            state, _ = step(state, jax.tree.map(lambda x, n=number: x[n : n + 1], batch))
    for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(jax.device_get(state.lora)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_minibatches_are_alike_on_any_mesh():
    alone, mesh = one_device(), make_mesh(MeshConfig(8))
    how = {"num_minibatches": 2, "num_epochs": 2, "old": True}
    whole = updated(alone, Placement(2, 1, alone, GROUP), **how)
    assert_same(updated(mesh, Placement(2, 1, mesh, GROUP), **how), whole)


def test_old_logps_make_the_first_ratio_exactly_1():
    mesh = one_device()
    _, metrics = updated(mesh, Placement(4, 1, mesh, GROUP), old=True)
    assert metrics["ratio/mean"] == 1.0
    assert metrics["clip_ratio/region_mean"] == 0.0
    assert metrics["kl"] == 0.0, "LoRA begins at its reference"


def test_kl_in_the_reward():
    rolled = rollouts([[1.0, np.nan], [0.0, 2.0]])
    made = to_batch(rolled, WIDTH, 8)
    shape = (2, -1, made["tokens"].shape[1])
    batch = {"loss_mask": jnp.asarray(made["loss_mask"]).reshape(shape)}
    full = batch["loss_mask"].shape
    batch |= {"old_logps": jnp.full(full, -1.0), "ref_logps": jnp.full(full, -1.5)}
    lengths = np.asarray([len(each.tokens) for each in rolled.completions]).reshape(2, 2)
    np.testing.assert_allclose(penalise(rolled.rewards, batch, 1, 0.1, "k1"),
                               rolled.rewards - 0.1 * 0.5 * lengths, rtol=1e-6)


def test_shares_of_the_time():
    assert time_shares({"rollout": 3.0, "update": 1.0}) == {"time_share/rollout": 0.75, "time_share/update": 0.25}
