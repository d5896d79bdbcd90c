"""The train step: the same loss and gradient however rows are split, laid over devices, packed or padded."""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIG, LORA, one_device, packed, padded, put, random_variables, rows, variables_on

from errors import InputError
from models.scoring import score
from models.transformer import Transformer
from objectives.base import Loss, masked_sum
from objectives.next_token import next_token
from objectives.sft import sft
from sharding.collectives import collectives
from sharding.mesh import MeshConfig, make_layout
from training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from training.state import TrainState, init_state
from training.step import accumulate, make_eval_step, make_train_step

ROWS = rows([12, 30, 7, 21, 16, 9, 25, 11])
MESHES = [(data, fsdp, tensor) for data, fsdp, tensor in itertools.product([1, 2, 4, 8], repeat=3)
          if data * fsdp * tensor == 8]
QUICK = [(1, 4, 2)]


def loss_and_grads(batch, lora=None, layout=None, num_microbatches=1, objective=sft, read=lambda text: None):
    """Loss, gradient and entropy as the step divides them; `read` is given the compiled text."""
    layout = layout or one_device()
    model = Transformer(CONFIG, lora, layout=layout)
    variables = variables_on(layout, lora)
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], variables.get("lora"), (), jax.random.key(0))
    on_device = put(batch, layout, num_microbatches)
    sums = jax.jit(lambda state, batch: accumulate(model, objective, state, batch)).lower(state, on_device).compile()
    read(sums.as_text())
    (total, weight, metrics, _), grads, *_ = sums(state, on_device)
    entropy = metrics["entropy"][0] / metrics["entropy"][1]
    return float(total / weight), jax.device_get(jax.tree.map(lambda grad: grad.sum(0) / weight, grads)), float(entropy)


def assert_same(one, other, tolerance=1e-5):
    """Loss and every gradient within a relative tolerance of the gradient's norm."""
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    assert one[2] == pytest.approx(other[2], rel=tolerance)
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.fixture(scope="module", params=["full", "lora"])
def lora(request):
    return LORA if request.param == "lora" else None


@pytest.fixture(scope="module")
def reference(lora):
    return loss_and_grads(padded(ROWS), lora)


@pytest.mark.parametrize("num_microbatches", [3, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 4))])
def test_micro_batches(lora, reference, num_microbatches):
    assert_same(loss_and_grads(padded(ROWS), lora, num_microbatches=num_microbatches), reference)


def test_padding(lora, reference):
    assert_same(loss_and_grads(padded(ROWS, 48), lora), reference)


@pytest.mark.parametrize("num_microbatches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_packing(lora, reference, num_microbatches):
    assert_same(loss_and_grads(packed(ROWS, 40), lora, num_microbatches=num_microbatches), reference)


@pytest.mark.parametrize("sizes", [sizes if sizes in QUICK else pytest.param(sizes, marks=pytest.mark.slow)
                                   for sizes in MESHES], ids=lambda sizes: "x".join(map(str, sizes)))
def test_meshes(lora, reference, sizes):
    assert_same(loss_and_grads(padded(ROWS), lora, make_layout(MeshConfig(*sizes))), reference)


def test_sequence_parallelism(lora, reference):
    """Between attention and mlp a device has its part of the positions, of what is saved for the backward pass, too. In
    a layer, `tensor` exchanges 2 gathers each way and scattered sums (on a CPU all-reduces), and nothing else."""
    layout, texts = make_layout(MeshConfig(1, 4, 2, rules=("residual_length=tensor",))), []
    assert_same(loss_and_grads(padded(ROWS, 32), lora, layout, read=texts.append), reference)
    assert "f32[2,2,16,32]" in texts[0]  # [L, B / 4, T / 2, D]
    in_layers = [each for each in collectives(texts[0], layout.mesh) if each.loops and each.axes == ("tensor",)]
    assert {each.kind for each in in_layers} == {"all-gather", "all-reduce"}
    gathered = [array.shape for each in in_layers for array in each.results if each.kind == "all-gather"]
    assert [shape for shape in gathered if math.prod(shape) >= 2 * 32 * 32] == [(2, 32, 32)] * 4  # the rest is LoRA's


def test_mesh_micro_batches_and_packing_at_once(lora, reference):
    layout = make_layout(MeshConfig(1, 2, 2, slice=2))
    assert_same(loss_and_grads(packed(ROWS, 40), lora, layout, num_microbatches=2), reference)


@pytest.mark.parametrize("remat", ["attention", *(pytest.param(remat, marks=pytest.mark.slow)
                                                 for remat in ("dots", "full", "offload"))])
def test_rematerialisation(reference, lora, remat, monkeypatch):
    monkeypatch.setitem(globals(), "CONFIG", dataclasses.replace(CONFIG, remat=remat))
    assert_same(loss_and_grads(padded(ROWS), lora), reference)


def test_a_scorer_may_give_more_than_the_usual_scores():
    """A field of [B, T] beside them, which the objective reads as it reads the others."""
    class Valued(NamedTuple):
        logps: Any
        values: Any

    def scorer(model, variables, batch, rngs=None):
        scores = score(model, variables, batch, rngs=rngs)
        return Valued(scores.logps, 2.0 * scores.logps)

    def of_values(scores, batch):
        return Loss(-masked_sum(scores.values, batch["loss_mask"]), jnp.sum(batch["loss_mask"]), {})

    state = TrainState(jnp.zeros((), jnp.int32), variables_on(one_device())["params"], None, (), jax.random.key(0))
    batch = put(padded(ROWS), one_device(), 2)
    of_them = accumulate(Transformer(CONFIG), of_values, state, batch, scorer).loss
    plain = accumulate(Transformer(CONFIG), sft, state, batch, score).loss
    np.testing.assert_allclose(of_them.total, 2 * plain.total, rtol=1e-5)


def test_the_gradient_is_that_of_the_plain_mean(lora, reference):
    """An independent path: no scan, no accumulation, one division."""
    batch, variables = padded(ROWS), random_variables(lora)
    name = "params" if lora is None else "lora"

    def mean_loss(trainable):
        scores = score(Transformer(CONFIG, lora), variables | {name: trainable}, batch)
        return -jnp.sum(scores.logps * batch["loss_mask"]) / jnp.sum(batch["loss_mask"])

    value, grads = jax.jit(jax.value_and_grad(mean_loss))(variables[name])
    assert_same((float(value), grads, reference[2]), reference)


@pytest.mark.slow
def test_next_token_is_invariant_too(lora):
    whole = loss_and_grads(padded(ROWS), lora, objective=next_token)
    layout = make_layout(MeshConfig(2, 2, 2))
    assert_same(loss_and_grads(packed(ROWS, 40), lora, layout, num_microbatches=2, objective=next_token), whole)
    assert whole[0] != loss_and_grads(padded(ROWS), lora)[0]


def run_steps(lora, count, change=lambda state, batch: (state, batch), layout=None):
    layout = layout or one_device()
    model = Transformer(CONFIG, lora, layout=layout)
    schedule = make_schedule(OptimizerConfig(), 1e-2, 10)
    optimizer = make_optimizer(OptimizerConfig(), schedule)
    state = init_state(model, variables_on(layout, lora)["params"], optimizer, jax.random.key(0), layout)
    step = make_train_step(model, sft, optimizer, schedule, state)
    history = []
    for _ in range(count):
        state, batch = change(state, put(padded(ROWS), layout, 2))
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
    return state, history, step


def test_training_lowers_the_loss_and_touches_the_trainable_part_only(lora):
    before = random_variables(lora)["params"]
    state, history, _ = run_steps(lora, 5)
    assert history[-1]["loss"] < history[0]["loss"] - 0.05
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), before, state.params)
    assert all(jax.tree.leaves(same)) == (lora is not None)
    assert int(state.step) == 5


@pytest.mark.parametrize("sizes", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_nothing_recompiles_in_the_loop(lora, sizes):
    _, _, step = run_steps(lora, 3, layout=make_layout(MeshConfig(*sizes)))
    assert step._cache_size() == 1


def test_the_reported_learning_rate_is_the_schedules(lora):
    _, history, _ = run_steps(lora, 3)
    schedule = make_schedule(OptimizerConfig(), 1e-2, 10)
    np.testing.assert_allclose([each["learning_rate"] for each in history], [schedule(step) for step in range(3)])


def test_non_finite_gradients_skip_the_update_and_are_counted(lora):
    def spoil(state, batch):
        if int(state.step) != 1:
            return state, batch
        return state, batch | {"loss_mask": batch["loss_mask"].at[0, 0, 3].set(jnp.inf)}

    state, history, _ = run_steps(lora, 2, spoil)
    clean, _, _ = run_steps(lora, 1)
    assert [int(each["skipped_updates"]) for each in history] == [0, 1]
    assert int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.trainable), jax.device_get(clean.trainable))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.opt_state), jax.device_get(clean.opt_state))


def test_a_batch_without_targets_is_loss_and_gradient_zero(lora):
    def empty(state, batch):
        return state, batch | {"loss_mask": jnp.zeros_like(batch["loss_mask"])}

    _, history, _ = run_steps(lora, 1, empty)
    assert history[0]["loss"] == 0
    assert history[0]["grad_norm"] == 0
    assert history[0]["skipped_updates"] == 0


def test_lora_optimiser_state_is_for_lora_alone():
    state = init_state(Transformer(CONFIG, LORA), random_variables(LORA)["params"], optax.adam(1e-3),
                       jax.random.key(0), one_device())
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for leaf in jax.tree.leaves(state.lora))


def test_evaluation_equals_the_training_loss(lora, reference):
    batch = put(padded(ROWS), one_device(), 1)
    sums = make_eval_step(Transformer(CONFIG, lora), sft, one_device())(random_variables(lora), batch)
    assert float(sums[0] / sums[1]) == pytest.approx(reference[0], rel=1e-5)


@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint])
def test_an_objective_may_be_transformed(lora, reference, transform):
    assert_same(reference, loss_and_grads(padded(ROWS), lora, objective=transform(sft)))
    with pytest.raises(InputError, match="the objective reads the column weight"):
        loss_and_grads(padded(ROWS), lora, objective=transform(lambda scores, batch: batch["weight"]))
