"""Micro-batches of any rows, lengths and layouts: the same loss, gradient and metrics, and nothing compiled anew."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from micro_batches import make_samples, micro_batch
from tiny import CONFIG, LORA, one_device, random_variables, variables_on

from batch import RowLayout
from errors import InputError
from models.scoring import score_by
from models.transformer import Transformer
from objectives.grpo import configure
from sharding.mesh import MeshConfig, make_layout
from training.reference import prepare_rollouts
from training.state import TrainState, init_state
from training.step import make_accumulated_step, make_minibatch_updates, make_train_step

SAMPLES = make_samples([(5, (4, 9, 1, 6)), (8, (2, 2, 9, 5))])
FIRST, SECOND = SAMPLES[:4], SAMPLES[4:]
CASES = {
    "token": {"importance_sampling_correction": "token_truncate", "beta": 0.1, "mask_truncated": True,
              "entropy_coefficient": 0.1},
    "sequence": {"importance_sampling_level": "sequence", "loss_aggregation": "sequence_mean", "beta": 0.1,
                 "importance_sampling_correction": "sequence_mask", "kl_weighted": True},
    "product": {"importance_sampling_level": "product", "loss_aggregation": "constant", "constant_length": 20.0}}
LAYOUTS = {
    "plain rows of two lengths": [([*FIRST[:3]], 16, RowLayout()), ([FIRST[3], *SECOND], 24, RowLayout())],
    "parts of groups": [([*FIRST[:2], *SECOND[:2]], 18, RowLayout(9, 2)),
                        ([*FIRST[2:], *SECOND[2:], None, None], 21, RowLayout(8, 2))],
    "shared and plain, with empty rows": [([None, *FIRST[:3], *SECOND], 20, RowLayout(10, 4)),
                                          ([FIRST[3], None], 12, RowLayout())]}



COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(event) if "backend_compile" in event else None)


def begin(layout, objective, lora=LORA):
    """(state, what makes a step of it); the optimiser's momentum is the gradient of the first update."""
    model, schedule = Transformer(CONFIG, lora, layout=layout), optax.constant_schedule(0.1)
    optimizer = optax.sgd(schedule, momentum=0.5)
    state = init_state(model, variables_on(layout, lora)["params"], optimizer, jax.random.key(3), layout)
    state = state.replace(lora=variables_on(layout, lora)["lora"]) if lora else state
    return state, (model, objective, optimizer, schedule, state, functools.partial(score_by, temperature=0.9))


def one_step(micro_batches, objective, layout=None, lora=LORA):
    """(metrics, gradient, logps of the targets)"""
    layout = layout or one_device()
    state, parts = begin(layout, objective, lora)
    placed = [micro_batch(*each, layout, max(1, each[2].group_size)) for each in micro_batches]
    state, metrics, logps = make_accumulated_step(*parts)(state, placed)
    targets = [np.asarray(scored)[np.asarray(each.columns["loss_mask"]) != 0]
               for scored, each in zip(jax.device_get(logps), jax.device_get(placed), strict=True)]
    return jax.device_get((metrics, state.opt_state[0].trace)) + (np.concatenate(targets),)


def assert_same(one, other, tolerance=1e-5):
    """But for what padding there is."""
    assert one[0].keys() == other[0].keys()
    for name in one[0].keys() - {"padding"}:
        assert one[0][name] == pytest.approx(other[0][name], rel=tolerance, abs=tolerance), name
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)
    np.testing.assert_allclose(np.sort(one[2]), np.sort(other[2]), atol=tolerance)


@functools.cache
def whole(case):
    return one_step([(SAMPLES, 20, RowLayout())], configure(**CASES[case]))


@pytest.mark.slow
@pytest.mark.parametrize("row_layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_rows_may_be_split_and_laid_out_in_any_way(case, row_layout):
    assert_same(one_step(LAYOUTS[row_layout], configure(**CASES[case])), whole(case))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 2, 4)], ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize("row_layout", LAYOUTS)
def test_on_any_mesh(row_layout, sizes):
    spread = one_step(LAYOUTS[row_layout], configure(**CASES["token"]), make_layout(MeshConfig(*sizes)))
    assert_same(spread, whole("token"))


@pytest.mark.slow
def test_full_fine_tuning_too():
    objective = configure(**CASES["sequence"])
    assert_same(one_step(LAYOUTS["parts of groups"], objective, lora=None),
                one_step([(SAMPLES, 20, RowLayout())], objective, lora=None))


@pytest.mark.slow
@pytest.mark.parametrize("row_layout", LAYOUTS)
def test_what_is_prepared_is_what_the_step_scores(row_layout):
    """old_logps and ref_logps of every row layout are those of plain rows."""
    layout = one_device()
    state, parts = begin(layout, configure())
    frozen = {"params": random_variables(None, seed=5)["params"]}
    prepare = prepare_rollouts(parts[0], Transformer(CONFIG), frozen, layout, parts[-1], old=True)
    for rows, length, how in LAYOUTS[row_layout]:
        found = prepare(state, micro_batch(rows, length, how, layout))
        alone = prepare(state, micro_batch(rows, 20, RowLayout(), layout))
        assert found.row_layout == how
        for name in ("old_logps", "ref_logps"):
            one, other = (np.asarray(each.columns[name])[np.asarray(each.columns["loss_mask"]) != 0]
                          for each in (found, alone))
            np.testing.assert_allclose(one, other, atol=1e-5)
    nothing = prepare_rollouts(parts[0], None, None, layout, parts[-1], old=False)(state, found)
    assert nothing is found or nothing.columns.keys() == found.columns.keys()


# ------------------------------------------------------------ what no model is needed for: weights of tokens instead

class Scores(NamedTuple):
    logps: jax.Array
    entropy: jax.Array


def score_tokens(row_layout):
    """The scorer of a policy that is one weight for each token, with a dropout."""
    def scorer(model, variables, batch, rngs):
        noise = jax.random.normal(rngs["dropout"], (64,))
        logps = jax.nn.log_softmax(variables["params"]["w"] + 0.1 * noise)[batch["tokens"]]
        return Scores(jnp.where(batch["segment_ids"] != 0, logps, 0.0), -logps)

    return scorer


def undropped(row_layout):
    """The same without."""
    dropped = score_tokens(row_layout)
    return lambda model, variables, batch, rngs=None: dropped(model, variables, batch, {"dropout": jax.random.key(0)})


SCHEDULE = optax.constant_schedule(0.1)
TOKENS = (Transformer(CONFIG), configure(), optax.sgd(SCHEDULE, momentum=0.5), SCHEDULE)
"""model, objective, optimizer, schedule"""


def beginning():
    params = {"w": jnp.sin(jnp.arange(64.0))}
    return jax.device_put(TrainState(jnp.zeros((), jnp.int32), params, None, TOKENS[2].init(params),
                                     jax.random.key(3)), one_device().sharding())


def accumulated(objective=TOKENS[1], scorer_of=score_tokens):
    return make_accumulated_step(TOKENS[0], objective, *TOKENS[2:], beginning(), scorer_of)


def placed(samples, length):
    return micro_batch(samples, length, RowLayout(), one_device())


@pytest.mark.parametrize("case", ["token", pytest.param("sequence", marks=pytest.mark.slow),
                                  pytest.param("product", marks=pytest.mark.slow)])
def test_micro_batches_of_any_shape_add_up(case):
    step, of_all = accumulated(configure(**CASES[case]), undropped), None
    for parts in ([(SAMPLES, 20, RowLayout())], LAYOUTS["plain rows of two lengths"],
                  LAYOUTS["shared and plain, with empty rows"]):
        state, metrics, _ = step(beginning(), [micro_batch(*part, one_device()) for part in parts])
        found = jax.device_get((metrics, state.opt_state[0].trace)) + (np.zeros(0),)
        of_all = of_all or found
        assert_same(found, of_all)


def test_the_numbers_are_those_of_the_scanned_step():
    """Dropout's, too."""
    micro_batches = [placed(part, 20) for part in (FIRST, SECOND)]
    stacked = {name: jnp.stack([each.columns[name] for each in micro_batches]) for name in micro_batches[0].columns}
    state, metrics, _ = accumulated()(beginning(), micro_batches)
    scanned, expected = make_train_step(*TOKENS, beginning(), score_tokens(RowLayout()))(beginning(), stacked)
    assert metrics.keys() == expected.keys()
    for name, value in jax.device_get(expected).items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-6, abs=1e-6), name
    np.testing.assert_allclose(state.params["w"], scanned.params["w"], atol=1e-7)


def test_nothing_is_compiled_anew_or_brought_from_the_host():
    state, narrow, wide = beginning(), placed(FIRST, 16), placed(FIRST, 24)
    updates = make_minibatch_updates(accumulated(), state)

    prepare = prepare_rollouts(None, None, None, one_device(), undropped, old=True)
    with jax.transfer_guard("disallow"):
        for number, batch in enumerate([[narrow, wide], [wide], [wide, narrow, narrow]]):
            prepared = [prepare(state, each) for each in batch]
            state, metrics, logps = updates(state, [prepared], 1)
            if number == 0:
                jax.block_until_ready(metrics), COMPILED.clear()
    assert not COMPILED
    assert [each.shape for each in logps[0]] == [(4, 24), (4, 16), (4, 16)]
    assert int(state.step) == 3


def test_what_couples_rows_is_not_split():
    def coupled(scores, batch):
        return configure()(scores, batch)

    coupled.couples_rows = True
    with pytest.raises(InputError, match="cannot be split into 2 parts; .* a larger --microbatch-tokens"):
        accumulated(coupled)(beginning(), [placed(FIRST, 16), placed(SECOND, 24)])


def test_a_batch_without_targets_moves_nothing():
    state, metrics, _ = accumulated()(beginning(), [placed([None] * 4, 16)])
    assert (metrics["loss"], metrics["grad_norm"], metrics["num_tokens"], metrics["padding"]) == (0, 0, 0, 1)
    np.testing.assert_array_equal(state.params["w"], beginning().params["w"])


def test_one_micro_batch_that_is_not_finite_skips_the_update():
    good, bad = placed(FIRST, 16), placed(FIRST, 16)
    bad = bad._replace(columns=bad.columns | {"advantages": bad.columns["advantages"].at[1].set(jnp.inf)})
    state, metrics, _ = accumulated()(beginning(), [good, bad, good])
    assert metrics["skipped_updates"] == 1
    assert int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state),
                 (beginning().params, beginning().opt_state))


def test_minibatches_are_updates_one_after_the_other():
    """Each with a key of its own, as its micro-batches have; tokens are summed, losses averaged, extremes kept; logps
    are of the first pass."""
    minibatches, step = [[placed(part, 20)] * 2 for part in (FIRST, SECOND)], accumulated()
    after, metrics, logps = make_minibatch_updates(step, beginning())(beginning(), minibatches, 2)
    state, history = beginning(), []
    for number in range(4):
        key = jax.random.fold_in(after.rng, number)
        state, *results = step(state.replace(rng=key, step=jnp.zeros_like(state.step)), minibatches[number % 2])
        history.append(jax.device_get(results))
    np.testing.assert_array_equal(after.params["w"], state.params["w"])
    assert int(after.step) == 1
    each = {name: [found[name] for found, _ in history] for name in metrics}
    assert metrics["num_tokens"] == sum(each["num_tokens"])
    assert metrics["loss"] == pytest.approx(np.mean(each["loss"]), rel=1e-5)
    extreme = "sampling/logp_difference/max"
    assert metrics[extreme] == max(each[extreme])
    assert len({float(value) for value in each["loss"]}) == 4
    for found, (_, scored) in zip(logps, history, strict=False):
        np.testing.assert_array_equal(found, scored)
        assert not np.array_equal(scored[0], scored[1])
