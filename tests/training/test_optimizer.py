"""Schedules by their values, Muon against numpy and over a mesh, and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, LORA, one_device, padded, rows, variables_on

from errors import InputError
from models.transformer import Transformer
from objectives.sft import sft
from sharding.mesh import MeshConfig, make_layout
from training.optimizer import OptimizerConfig, decayed, make_optimizer, make_schedule, with_shardings
from training.state import init_state
from training.step import make_train_step, optimizer_steps

MUON = OptimizerConfig(name="muon", max_grad_norm=0.0)


def rates(max_steps, **fields):
    schedule = make_schedule(OptimizerConfig(**fields), 1.0, max_steps)
    return np.array([float(schedule(step)) for step in range(max_steps + 1)])


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_every_schedule_rises_over_warmup(name):
    np.testing.assert_allclose(rates(20, schedule=name, warmup_steps=4)[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-5)


@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_decay_falls_to_the_final_fraction(name, final):
    found = rates(20, schedule=name, warmup_steps=4, final_fraction=final)
    assert found[4:].tolist() == sorted(found[4:], reverse=True)
    assert found[20] == pytest.approx(final, abs=1e-6)
    assert found[19] > final + 1e-3


def test_cosine_and_linear_are_half_way_in_the_middle_and_differ_elsewhere():
    cosine, linear = (rates(24, schedule=name, warmup_steps=4, final_fraction=0.2) for name in ("cosine", "linear"))
    assert cosine[14] == pytest.approx(0.6, rel=1e-5)
    assert linear[14] == pytest.approx(0.6, rel=1e-5)
    assert cosine[9] == pytest.approx(0.2 + 0.8 * (1 + np.cos(np.pi / 4)) / 2, rel=1e-5)
    assert linear[9] == pytest.approx(0.8, rel=1e-5)


def test_wsd_stays_and_then_falls_linearly():
    found = rates(20, schedule="wsd", warmup_steps=4, decay_fraction=0.25, final_fraction=0.5)
    np.testing.assert_allclose(found[4:16], 1.0)
    np.testing.assert_allclose(found[15:], [1.0, 0.9, 0.8, 0.7, 0.6, 0.5], rtol=1e-5)


def test_constant_stays():
    assert rates(20, schedule="constant", warmup_steps=2)[2:].tolist() == [1.0] * 19


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match="warmup_steps 20 must be fewer than the run's 20 updates"):
        make_schedule(OptimizerConfig(warmup_steps=20), 1.0, 20)


def test_warmup_and_decay_longer_than_the_run_are_refused():
    with pytest.raises(InputError, match="decay_fraction 0.5 of the run's 20 updates is 10, .*warmup_steps 11 leave 9"):
        make_schedule(OptimizerConfig(schedule="wsd", decay_fraction=0.5, warmup_steps=11), 1.0, 20)


@pytest.mark.parametrize("fields", [
    {"warmup_steps": -1}, {"decay_fraction": 0.0, "schedule": "wsd"}, {"decay_fraction": 1.1, "schedule": "wsd"},
    {"decay_fraction": 0.1}, {"final_fraction": 1.1}, {"final_fraction": -0.1}, {"weight_decay": -0.1},
    {"final_fraction": 0.1, "schedule": "constant"}, {"b1": 1.0}, {"b2": -0.1}, {"max_grad_norm": -1.0},
    {"weight_decay": float("nan")}], ids=str)
def test_values_that_make_no_sense_are_refused(fields):
    name, value = next(iter(fields.items()))
    with pytest.raises(InputError, match=rf"^optimizer\.{name} {value} [^\n]*$"):
        make_schedule(OptimizerConfig(**fields), 1.0, 20)


def first_update(config, grads, params, rate=0.1):
    """The first update of the parameters."""
    optimizer = make_optimizer(config, lambda step: rate)
    return jax.jit(lambda grads, params: optimizer.update(grads, optimizer.init(params), params)[0])(grads, params)


def model_like(value):
    """One parameter of each kind."""
    full = {"kernel": (2, 3, 4), "bias": (2, 4), "a": (2, 3, 2), "b": (2, 2, 4)}
    layers = {"attn": {"q": {name: jnp.full(shape, value) for name, shape in full.items()}},
              "attn_norm": {"scale": jnp.full((2, 3), value)}}
    return {"layers": layers, "embedding": jnp.full((5, 3), value), "lm_head": jnp.full((3, 5), value),
            "final_norm": {"scale": jnp.full(3, value)}}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_norms_and_biases_do_not_decay(name):
    params, zeros = model_like(1.0), model_like(0.0)
    updates = first_update(OptimizerConfig(name=name, weight_decay=0.5), zeros, params)
    expected = jax.tree.map(lambda x, decays: np.full(x.shape, -0.05 if decays else 0.0), params, decayed(params))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5), updates, expected)
    spared = [path[-1].key for path, decays in jax.tree.leaves_with_path(decayed(params)) if not decays]
    assert sorted(spared) == ["bias", "scale", "scale"]


def test_gradients_are_clipped_to_the_norm():
    big = {"q": {"kernel": jnp.full((2, 2), 100.0)}}
    states = []
    for norm in (1.0, 0.0):
        optimizer = make_optimizer(OptimizerConfig(max_grad_norm=norm), lambda step: 0.1)
        states.append(optimizer.update(big, optimizer.init(big), big)[1])
    clipped, free = (state[1][0].mu["q"]["kernel"][0, 0] for state in states)
    assert float(clipped) == pytest.approx(0.05, rel=1e-5)
    assert float(free) == pytest.approx(10.0, rel=1e-5)


def newton_schulz(gradient):
    """Five quintic steps on the singular values alone, by SVD: s -> a s + b s^3 + c s^5."""
    left, values, right = np.linalg.svd(gradient.astype(np.float64), full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ np.diag(values) @ right


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_muon_orthogonalises_each_layer_on_its_own(shape):
    """One step from rest, where the momentum is along the gradient."""
    random = np.random.default_rng(0)
    weights, gradient = (random.normal(size=(3, *shape)).astype("f") for _ in range(2))
    params, grads = ({"layers": {"q": {"kernel": jnp.asarray(each)}}} for each in (weights, gradient))
    updates = first_update(OptimizerConfig(name="muon", weight_decay=0.1), grads, params, 0.01)
    for layer in range(3):
        expected = -0.01 * (0.2 * np.sqrt(6) * newton_schulz(gradient[layer]) + 0.1 * weights[layer])
        np.testing.assert_allclose(updates["layers"]["q"]["kernel"][layer], expected, atol=2e-6)


def test_muon_leaves_embedding_head_norms_and_biases_to_adamw():
    params, random = model_like(1.0), np.random.default_rng(0)
    grads = jax.tree.map(lambda x: random.normal(size=x.shape).astype("f"), params)
    adamw, muon = (first_update(OptimizerConfig(name=name, weight_decay=0.1), grads, params)
                   for name in ("adamw", "muon"))
    same = jax.tree.map(lambda a, b: bool(np.allclose(a, b, rtol=1e-6)), adamw, muon)
    matrices = same["layers"]["attn"]["q"]
    assert matrices == {"kernel": False, "a": False, "b": False, "bias": True}
    assert all(jax.tree.leaves(same | {"layers": same["layers"]["attn_norm"]}))


def test_muon_updates_at_the_size_of_adamw():
    """What lets one learning rate serve both: root mean square about 0.2 (Newton-Schulz ends within a third of 1)."""
    params = {"layers": {"q": {"kernel": jax.random.normal(jax.random.key(0), (2, 64, 96))}}}
    updates = first_update(MUON, params, params, 1.0)
    assert float(jnp.sqrt(jnp.mean(updates["layers"]["q"]["kernel"] ** 2))) == pytest.approx(0.2, rel=0.3)


def two_updates(layout, lora=None):
    """Some parameters and their optimiser state after two updates, by gradients that are the same on every mesh."""
    params = variables_on(layout, lora)["lora" if lora else "params"]
    params = {"layers": {"q": params["layers"]["attn"]["q"], "down": params["layers"]["mlp"]["down"]}} | (
        {} if lora else {"embedding": params["embedding"]})
    optimizer = with_shardings(make_optimizer(MUON, lambda step: 0.1), jax.tree.map(lambda x: x.sharding, params))

    @jax.jit
    def update(grads, opt_state, params):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state

    opt_state, start = jax.jit(optimizer.init)(params), params
    for shift in range(2):
        grads = jax.tree.map(lambda x, shift=shift: jnp.cos(x * 99 + shift), start)
        params, opt_state = update(grads, opt_state, params)
    return params, opt_state


SIZES = [(data, fsdp, 8 // data // fsdp) for data in (1, 2, 4, 8) for fsdp in (1, 2, 4, 8) if data * fsdp <= 8]


@pytest.mark.parametrize(("sizes", "lora"), [
    ((2, 2, 2), None),
    *(pytest.param(sizes, lora, marks=pytest.mark.slow) for sizes in SIZES for lora in (None, LORA))])
def test_muon_over_a_mesh_is_muon_on_one_device(sizes, lora):
    layout = make_layout(MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]))
    split, whole = two_updates(layout, lora), two_updates(one_device(), lora)
    assert len(jax.tree.leaves(split[0])[0].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *jax.device_get((split, whole)))


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_muon_momentum_is_laid_out_as_its_parameter(lora):
    layout = make_layout(MeshConfig(1, 4, 2))
    optimizer = make_optimizer(MUON, lambda step: 0.1)
    model = Transformer(CONFIG, lora, layout=layout)
    state = init_state(model, variables_on(layout)["params"], optimizer, jax.random.key(0), layout)
    parts = state.opt_state[1].inner_states
    momentum, moment = parts["muon"].inner_state[0].mu, parts["adamw"].inner_state[0].mu
    held = dict(jax.tree.leaves_with_path(momentum)) | dict(jax.tree.leaves_with_path(moment))
    params = dict(jax.tree.leaves_with_path(state.trainable))
    assert held.keys() == params.keys()  # every parameter has one optimiser, none has both
    assert len(held) == len(jax.tree.leaves(momentum)) + len(jax.tree.leaves(moment))
    assert all(held[path].sharding.is_equivalent_to(x.sharding, x.ndim) for path, x in params.items())
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(momentum))


def test_muon_trains_and_counts_only_the_updates_it_makes():
    layout = make_layout(MeshConfig(2, 2, 2))
    model = Transformer(CONFIG, layout=layout)
    schedule = make_schedule(OptimizerConfig(name="muon"), 1e-2, 10)
    optimizer = make_optimizer(OptimizerConfig(name="muon"), schedule)
    batch = {name: array[None] for name, array in jax.device_get(padded(rows([12, 30, 7, 21]))).items()}
    broken = batch | {"loss_mask": np.where(np.arange(30) == 3, np.inf, batch["loss_mask"]).astype("f")}
    state = init_state(model, variables_on(layout)["params"], optimizer, jax.random.key(0), layout)
    step, history = make_train_step(model, sft, optimizer, schedule, state), []
    for each in (batch, broken, batch, batch):
        state, metrics = step(state, each)
        history.append(jax.device_get(metrics))
    assert int(optimizer_steps(state.opt_state)) == 3
    assert [int(each["skipped_updates"]) for each in history] == [0, 1, 0, 0]
    np.testing.assert_allclose([each["learning_rate"] for each in history], [schedule(n) for n in (0, 1, 1, 2)])
    assert history[3]["loss"] < history[0]["loss"] - 0.02
