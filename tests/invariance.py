"""What every objective must hold, checked for free: hand `check_objective` a function and a batch that it takes.

    check_objective(focal, padded(rows([7, 12, 5, 9])))                              # rows stand alone
    check_objective(simpo, answer_pairs([(7, 5), (3, 9)]), rows_per_unit=2)          # pairs of adjacent rows

Loss, metrics and gradient must not depend on how the rows are split into micro-batches, laid over devices, ordered or
padded; a batch without targets is loss 0 with a zero gradient; and the gradient is the one that differences give.
`check_train_step` asks the same of the project's scorer and train step with a real, tiny model.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from tiny import CONFIG, one_device, padded, put, rows, variables_on

from models.scoring import TokenScores
from models.transformer import Transformer
from objectives.base import Loss, combine
from sharding.mesh import MeshConfig, make_layout
from training.state import TrainState
from training.step import accumulate


def check_objective(objective, batch, scores=None, *, rows_per_unit=1, differences=True, tolerance=1e-5):
    """Raises AssertionError, naming what differs.

    `scores` are random TokenScores unless given (any named tuple of [B, ...] arrays). `rows_per_unit` rows belong
    together, 2 for pairs. `differences` False leaves finite differences out, for an objective that stops gradients. One
    whose attribute couples_rows is True is never split.
    """
    scores = random_scores(batch) if scores is None else scores
    whole = evaluate(objective, scores, batch)
    assert float(whole[0].weight) > 0, "the batch has no targets, so it checks nothing"
    for what, result in variants(objective, scores, batch, rows_per_unit):
        same(result, whole, what, tolerance)
    check_no_targets(objective, scores, batch)
    if differences:
        check_differences(objective, scores, batch)


def variants(objective, scores, batch, rows_per_unit):
    """(what was done, (loss, gradient as of the whole batch)) for everything that must change nothing."""
    count = len(batch["tokens"])
    if not getattr(objective, "couples_rows", False):
        for size in (rows_per_unit, 3 * rows_per_unit):
            yield f"split into parts of {size} rows", split(objective, scores, batch, size)
    order = np.random.default_rng(0).permutation(np.arange(count).reshape(-1, rows_per_unit)).ravel()
    yield "rows in another order", reorder(objective, scores, batch, order)
    yield "5 more positions", extend(objective, scores, batch, positions=5)
    yield "empty rows", extend(objective, scores, batch, rows=3 * rows_per_unit)
    for devices in (1, 8):
        yield f"{devices} devices", spread(objective, scores, batch, devices)


# -------------------------------------------------------------------------------------------- batches and scores

def answer_pairs(lengths, prompt=3, seed=0):
    """Pairs of adjacent rows, chosen and rejected: `lengths` are their answers' tokens. With ref_logps."""
    random = np.random.default_rng(seed + 1000)  # other numbers than random_scores has
    made = rows([prompt + length for length in itertools.chain(*lengths)], seed)
    for row in made:
        row.loss_mask[:] = np.arange(len(row.tokens)) >= prompt
    batch = padded(made)
    return batch | {"ref_logps": jnp.asarray(-random.exponential(size=batch["tokens"].shape), jnp.float32)}


def random_scores(batch, seed=0):
    """TokenScores that the scorer could have given: 0 at first tokens and padding."""
    random = np.random.default_rng(seed)
    given = np.asarray((batch["segment_ids"] != 0) & (batch["positions"] > 0), np.float32)
    signs = [-1 if name in ("logps", "log_collision") else 1 for name in TokenScores._fields]
    return TokenScores(*(jnp.asarray(sign * given * random.exponential(size=given.shape), jnp.float32)
                         for sign in signs))


def evaluate(objective, scores, batch):
    """(Loss, gradient of its total with respect to every score)."""
    def total(scores):
        loss = objective(scores, batch)
        assert isinstance(loss, Loss), "an objective returns a Loss"
        return loss.total, loss

    (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(scores)
    return loss, gradient


def take(tree, index):
    return jax.tree.map(lambda array: array[index], tree)


def same(one, other, what, tolerance):
    """Loss and gradients agree, relatively to the largest entry of each array."""
    assert one[0].metrics.keys() == other[0].metrics.keys(), f"{what}: other metrics"
    named = jax.tree_util.tree_leaves_with_path
    for (path, a), (_, b) in zip(named(one), named(other), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = max(np.max(np.abs(b)), 1e-6)
        assert a.shape == b.shape, f"{what}: {jax.tree_util.keystr(path)} has shape {a.shape}, not {b.shape}"
        assert np.all(np.abs(a - b) <= tolerance * scale), f"{what}: {jax.tree_util.keystr(path)} is {a}, not {b}"


# ------------------------------------------------------------------------------------- what must change nothing

def split(objective, scores, batch, size):
    """Sums over parts; the gradients of the parts, end to end."""
    parts = [evaluate(objective, *take((scores, batch), slice(start, start + size)))
             for start in range(0, len(batch["tokens"]), size)]
    loss = functools.reduce(combine, (part[0] for part in parts))
    return loss, jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *(part[1] for part in parts))


def reorder(objective, scores, batch, order):
    loss, gradient = evaluate(objective, *take((scores, batch), order))
    return loss, take(gradient, np.argsort(order))


def extend(objective, scores, batch, rows=0, positions=0):
    """With rows and positions that hold nothing, whatever the model says of them; they must have no gradient."""
    def fill(array, value):
        width = [(0, rows), (0, positions)][: array.ndim] + [(0, 0)] * (array.ndim - 2)
        return jnp.pad(array, width, constant_values=value)

    loss, gradient = evaluate(objective, jax.tree.map(lambda array: fill(array, -0.7), scores),
                              jax.tree.map(lambda array: fill(array, 0), batch))
    cut = jax.tree.map(lambda array, like: array[tuple(map(slice, like.shape))], gradient, scores)
    outside = jax.tree.map(lambda array, inside: jnp.sum(array != 0) - jnp.sum(inside != 0), gradient, cut)
    assert not any(jax.tree.leaves(outside)), "padding has a gradient"
    return loss, cut


def spread(objective, scores, batch, devices):
    """Rows laid over the devices, with empty rows so that they divide."""
    fill = -len(batch["tokens"]) % devices
    layout = make_layout(MeshConfig(data=devices), jax.devices()[:devices])
    sharding = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec("data"))
    laid = jax.tree.map(lambda array: jnp.pad(array, [(0, fill)] + [(0, 0)] * (array.ndim - 1)), (scores, batch))
    loss, gradient = jax.jit(lambda *given: evaluate(objective, *given))(*jax.device_put(laid, sharding))
    return jax.device_get((loss, take(gradient, slice(len(batch["tokens"])))))


# ------------------------------------------------------------------------------------- nothing, and differences

def check_no_targets(objective, scores, batch):
    """Nothing to learn from is loss 0, weight 0 and gradient 0, all finite."""
    loss, gradient = evaluate(objective, *jax.tree.map(jnp.zeros_like, (scores, batch)))
    assert float(loss.total) == 0, f"loss {loss.total} without targets"
    assert float(loss.weight) == 0, f"weight {loss.weight} without targets"
    assert all(np.all(np.isfinite(value)) for value in jax.tree.leaves(loss.metrics)), "metrics without targets"
    assert not any(np.any(array) for array in jax.tree.leaves(gradient)), "a gradient without targets"


def check_differences(objective, scores, batch, step=1e-5):
    """The gradient along random directions is the central difference, in float64."""
    with jax.enable_x64(True):
        scores, batch = jax.tree.map(_double, (scores, batch))
        _, gradient = evaluate(objective, scores, batch)
        for seed in range(3):
            direction = _direction(scores, np.random.default_rng(seed))
            ahead, behind = (objective(_move(scores, direction, size), batch).total for size in (step, -step))
            slope = (ahead - behind) / (2 * step)
            found = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
            assert abs(found - slope) <= 1e-6 * max(1.0, abs(slope)), f"gradient {found}, differences {slope}"


def _direction(scores, random):
    return jax.tree.map(lambda array: jnp.asarray(random.normal(size=array.shape)), scores)


def _move(scores, direction, size):
    return jax.tree.map(lambda array, towards: array + size * towards, scores, direction)


def _double(array):
    return jnp.asarray(array, jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else jnp.asarray(array)


# ------------------------------------------------------------------------------------------------ the train step

def check_train_step(objective, batch, lora=None, tolerance=1e-5):
    """Loss, metrics and gradient through scorer and train step: on 8 devices in 2 micro-batches, and on one device."""
    count = 1 if getattr(objective, "couples_rows", False) else 2
    results = [through_the_step(objective, batch, *how, lora)
               for how in ((make_layout(MeshConfig(2, 2, 2)), count), (one_device(), 1))]
    same(*results, f"8 devices and {count} micro-batches", tolerance)


def through_the_step(objective, batch, layout, num_microbatches, lora):
    model = Transformer(CONFIG, lora, layout=layout)
    variables = variables_on(layout, lora)
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], variables.get("lora"), (), jax.random.key(0))
    sums = jax.jit(lambda state, batch: accumulate(model, objective, state, batch))(
        state, put(batch, layout, num_microbatches))
    return jax.device_get((sums.loss, jax.tree.map(lambda grad: grad.sum(0), sums.grads)))
