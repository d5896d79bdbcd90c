"""What is computed before the step: the reference's scores, KTO's reference point, a reference that follows."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from invariance import answer_pairs
from tiny import CONFIG, LORA, jitted_score, one_device, put, random_variables, variables_on

from errors import InputError
from models.transformer import Transformer
from objectives.dpo import configure
from objectives.kto import kto
from objectives.orpo import orpo
from objectives.simpo import simpo
from sharding.mesh import MeshConfig, make_layout
from training.reference import needs_reference, prepare_labelled, prepare_pairs
from training.state import TrainState, init_state
from training.step import check_split, make_train_step
from training.sync import SyncConfig, make_sync, start_sync

PAIRS = answer_pairs([(7, 5), (3, 9), (6, 6), (2, 4)])


def state_of(lora=LORA, layout=None):
    variables = variables_on(layout or one_device(), lora)
    return TrainState(jnp.zeros((), jnp.int32), variables["params"], variables.get("lora"), (), jax.random.key(0))


def without_reference(batch):
    return {name: column for name, column in batch.items() if name != "ref_logps"}


def test_under_lora_the_reference_is_the_base_model():
    batch = put(without_reference(PAIRS), one_device(), 2)
    made = prepare_pairs(Transformer(CONFIG, LORA), None, one_device(), configure())(state_of(), batch)
    expected = jitted_score(Transformer(CONFIG), {"params": random_variables(LORA)["params"]}, PAIRS).logps
    np.testing.assert_allclose(made["ref_logps"].reshape(expected.shape), expected, atol=1e-5)
    np.testing.assert_allclose(made["chosen_length"], (7 + 3 + 6 + 2) / 4)


def test_a_frozen_reference_and_one_that_the_data_had():
    other = {"params": random_variables(None, seed=5)["params"]}
    batch = put(without_reference(PAIRS), one_device(), 1)
    prepare = prepare_pairs(Transformer(CONFIG), other, one_device(), configure())
    made, kept = prepare(state_of(), batch), prepare(state_of(), put(PAIRS, one_device(), 1))
    np.testing.assert_allclose(made["ref_logps"][0], jitted_score(Transformer(CONFIG), other, PAIRS).logps, atol=1e-5)
    np.testing.assert_array_equal(kept["ref_logps"][0], PAIRS["ref_logps"])


@pytest.mark.parametrize(("sizes", "num_microbatches"), [(None, 1), (None, 2), ((2, 2, 2), 1),
                                                        pytest.param((8, 1, 1), 2, marks=pytest.mark.slow)])
def test_the_reference_point_is_of_the_whole_batch(sizes, num_microbatches):
    """Rows and mismatched rows in turn; z by hand from the mismatched ones."""
    layout = make_layout(MeshConfig(*sizes)) if sizes else one_device()
    model = Transformer(CONFIG, LORA, layout=layout)
    batch = without_reference(PAIRS) | {"label": jnp.asarray([1.0, 1, 0, 0, 1, 1, 0, 0])}
    prepare = prepare_labelled(model, model, None, layout)
    made = prepare(state_of(layout=layout), put(batch, layout, num_microbatches, 2))
    model = model.clone(layout=None)
    own, other = ({name: column[place::2] for name, column in PAIRS.items()} for place in (0, 1))
    policy, base = random_variables(LORA), {"params": random_variables(LORA)["params"]}
    D = np.sum((jitted_score(model, policy, other).logps - jitted_score(model, base, other).logps)
               * other["loss_mask"], axis=-1)
    assert np.mean(D) > 0.05
    np.testing.assert_allclose(made["kto_z"], max(0.0, np.mean(D)), rtol=1e-4)
    used = np.any(np.asarray(made["segment_ids"]) != 0, axis=-1)
    np.testing.assert_array_equal(np.asarray(made["tokens"])[used], own["tokens"])
    np.testing.assert_allclose(np.asarray(made["ref_logps"])[used], jitted_score(model, base, own).logps, atol=1e-5)


@pytest.mark.parametrize(("objective", "needed"), [
    (configure(), True), (configure(losses=(("sigmoid", 1.0), ("sft_token", 0.1))), True), (kto, True), (orpo, False),
    (simpo, False)])
def test_which_objectives_need_a_reference(objective, needed):
    assert needs_reference(objective) == needed


def test_a_column_that_was_not_asked_for_is_named():
    batch = put(PAIRS, one_device(), 1)
    state = init_state(Transformer(CONFIG), variables_on(one_device())["params"], optax.sgd(0.1), jax.random.key(0),
                       one_device())
    step = make_train_step(Transformer(CONFIG), lambda scores, batch: batch["weight"], optax.sgd(0.1),
                           lambda step: 0.1, state)
    with pytest.raises(InputError, match="reads the column weight, .* `needs` names it"):
        step(state, batch)


def test_what_couples_rows_is_not_split():
    sorting = configure(losses=(("aot", 1.0),))
    check_split(sorting, 1)
    check_split(configure(), 4)
    with pytest.raises(InputError, match="cannot be split into 4 parts"):
        check_split(sorting, 4)


@pytest.mark.parametrize("lora", [pytest.param(None, id="full", marks=pytest.mark.slow), pytest.param(LORA, id="lora")])
def test_a_reference_that_follows(lora):
    """After every second step: alpha policy + (1 - alpha) reference; a resumed step counts on."""
    model, layout, sync = Transformer(CONFIG, lora), one_device(), SyncConfig(every=2, alpha=0.75)
    optimizer = optax.chain(optax.sgd(0.1), optax.scale_by_schedule(lambda count: 1.0))
    state = init_state(model, variables_on(layout, lora)["params"], optimizer, jax.random.key(0), layout)
    state = start_sync(state, sync)
    step = make_train_step(model, configure(), optimizer, lambda count: 0.1, state, after_update=make_sync(sync))
    prepare = prepare_pairs(model, None, layout, configure())
    reference = jax.device_get(state.reference)
    for number in range(1, 5):
        state, metrics = step(state, prepare(state, put(without_reference(PAIRS), layout, 1)))
        if number == 1:
            assert float(metrics["loss"]) == pytest.approx(math.log(2), rel=1e-6)
        share = 0.75 if number % 2 == 0 else 0.0
        reference = jax.tree.map(lambda old, new, share=share: old + share * (new - old), reference,
                                 jax.device_get(state.trainable))
        jax.tree.map(lambda ours, found: np.testing.assert_allclose(found, ours, rtol=1e-5, atol=1e-7), reference,
                     jax.device_get(state.reference))
    assert step._cache_size() == 1


def test_nothing_follows_unless_asked():
    state = state_of()
    assert start_sync(state, SyncConfig()).reference is None
    assert make_sync(SyncConfig())(state) is state


@pytest.mark.parametrize("settings", [{"every": -1}, {"alpha": 0.0}, {"alpha": 1.5}])
def test_bad_synchronisation(settings):
    with pytest.raises(InputError, match="sync.every"):
        dataclasses.replace(SyncConfig(), **settings)
