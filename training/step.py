"""The train step: micro-batches under lax.scan, one division, one guarded update."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from batch import COUNT
from errors import InputError
from models.scoring import score
from models.transformer import Transformer
from objectives.base import Loss, combine, extreme, zero_loss
from training.state import TrainState

Objective = Callable[[Any, dict[str, jax.Array]], Loss]
Scorer = Callable[..., Any]
"""(model, variables, batch, rngs=...) -> the scores that an objective takes"""
Prepare = Callable[[TrainState, dict[str, jax.Array]], dict[str, jax.Array]]
"""(state, batch of [K, B, T] arrays) -> the batch with what an objective needs besides (the reference's scores)"""


class Columns(dict[str, jax.Array]):
    """A batch as an objective sees it: a column that is not there is named in one line."""

    def __missing__(self, name: str) -> None:
        raise InputError(f"the objective reads the column {name}, which a batch has only where the objective's `needs` "
                         f"names it (docs/new_objective.md); it has {', '.join(self)}")


def _flatten(columns: Columns) -> tuple[list[jax.Array], tuple[str, ...]]:
    names = tuple(sorted(columns))
    return [columns[name] for name in names], names


jax.tree_util.register_pytree_node(Columns, _flatten, lambda names, values: Columns(zip(names, values, strict=True)))


def make_train_step(model: Transformer, objective: Objective, optimizer: optax.GradientTransformation,
                    schedule: optax.Schedule, state: TrainState, scorer: Scorer = score,
                    after_update: Callable[[TrainState], TrainState] = lambda state: state) -> Callable[..., Any]:
    """The jitted step: (state, batch of [K, B, T] arrays) -> (state, metrics); the state is donated.

    The new state lies on the devices as `state` does; left to the compiler, it could lie otherwise, and the second step
    would compile anew.

    Loss and gradient are sum over micro-batches of `total` / sum of `weight`; every metric is its sum over its weight,
    extremes are those of all rows.
    An update whose gradient norm is not finite is skipped and counted in `skipped_updates`. `num_tokens` and `padding`
    (the share of positions that hold none) are of the whole batch, and so are the sums of its columns count/NAME.
    `after_update` is applied to every new state (for a reference that follows the policy).
    """

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        batch, counted = _count(batch)
        (total, weight, sums, extremes), grads = accumulate(model, objective, state, batch, scorer)
        denominator = jnp.where(weight > 0, weight, 1.0)
        grads = jax.tree.map(lambda grad: grad / denominator, grads)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(total)
        updated = _update(state, grads, optimizer)
        chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old),
                            (updated.trainable, updated.opt_state), (state.trainable, state.opt_state))
        learning_rate = schedule(optimizer_steps(state.opt_state))
        state = state.with_trainable(chosen[0]).replace(opt_state=chosen[1], step=state.step + 1)
        metrics = {name: value / jnp.where(count > 0, count, 1.0) for name, (value, count) in sums.items()}
        metrics |= extremes | {"loss": total / denominator, "grad_norm": grad_norm, "learning_rate": learning_rate,
                    "loss_weight": weight, "skipped_updates": 1 - finite.astype(jnp.int32)}
        return after_update(state), metrics | counted

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    everywhere = state.step.sharding  # so that every process can read the metrics
    return jax.jit(step, donate_argnums=0, in_shardings=(shardings, None), out_shardings=(shardings, everywhere))


def _count(batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The batch without its columns count/NAME, and what is counted in it."""
    used = batch["segment_ids"] != 0
    counted = {"num_tokens": jnp.sum(used), "padding": 1.0 - jnp.mean(used.astype(jnp.float32))}
    counted |= {name: jnp.sum(column) for name, column in batch.items() if name.startswith(COUNT)}
    return {name: column for name, column in batch.items() if not name.startswith(COUNT)}, counted


def optimizer_steps(opt_state: Any) -> jax.Array:
    """Updates made so far, which is what the schedule counts (a skipped step makes none)."""
    return optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]


def _update(state: TrainState, grads: Any, optimizer: optax.GradientTransformation) -> TrainState:
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    return state.with_trainable(optax.apply_updates(state.trainable, updates)).replace(opt_state=opt_state)


def check_split(objective: Objective, num_microbatches: int) -> None:
    """Raises InputError where an objective that couples the rows of a batch would see only parts of it."""
    if num_microbatches > 1 and getattr(objective, "couples_rows", False):
        raise InputError(f"the loss couples all rows of a batch, so it cannot be split into {num_microbatches} parts; "
                         f"set --num-microbatches 1, or choose another loss")


def accumulate(model: Transformer, objective: Objective, state: TrainState, batch: dict[str, jax.Array],
               scorer: Scorer = score) -> tuple[Loss, Any]:
    """Sums of loss, weight and metrics, and the gradient of the summed loss, over K micro-batches; all float32."""
    check_split(objective, batch["tokens"].shape[0])
    key = jax.random.fold_in(state.rng, state.step)
    num_microbatches = batch["tokens"].shape[0]

    def micro_sums(trainable: Any, micro: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, Loss]:
        scores = scorer(model, state.with_trainable(trainable).variables(), micro, rngs={"dropout": key})
        loss = objective(scores, Columns(micro))
        chex.assert_shape([loss.total, loss.weight], ())
        return loss.total, loss

    def body(carry: Any, xs: Any) -> tuple[Any, None]:
        (_, loss), grads = jax.value_and_grad(micro_sums, has_aux=True)(state.trainable, *xs)
        grads = jax.tree.map(lambda sum, grad: sum + grad.astype(jnp.float32), carry[1], grads)
        return (combine(carry[0], loss), grads), None

    xs = (batch, jax.random.split(key, num_microbatches))
    _, shapes = jax.eval_shape(micro_sums, state.trainable, *jax.tree.map(lambda x: x[0], xs))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), state.trainable)
    return jax.lax.scan(body, (zero_loss(shapes), zeros), xs)[0]


def make_updates(step: Callable[..., Any], state: TrainState, num_minibatches: int,
                 num_iterations: int) -> Callable[..., Any]:
    """Several updates from one batch: (state, batch of [M * K, B, T] arrays) -> (state, metrics); the state is donated.

    `step` is make_train_step's. The rows are split into M mini-batches, an update each, gone through
    `num_iterations` times in the same order. The new state lies as `state` does. Metrics are means over updates, but
    sums of tokens and of skipped updates, and extremes of all.
    Each update has a key of its own; `state.step` counts batches.
    """
    def updates(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        split = jax.tree.map(lambda x: x.reshape(num_minibatches, -1, *x.shape[1:]), batch)
        count = num_minibatches * num_iterations

        def body(at: TrainState, number: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
            part = jax.tree.map(lambda x: x[number % num_minibatches], split)
            after, metrics = step(at.replace(rng=jax.random.fold_in(state.rng, number)), part)
            return after.replace(step=state.step, rng=state.rng), metrics

        after, metrics = jax.lax.scan(body, state, jnp.arange(count))
        return after.replace(step=state.step + 1), {name: _over_updates(name, each) for name, each in metrics.items()}

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(updates, donate_argnums=0, in_shardings=(shardings, None),
                   out_shardings=(shardings, state.step.sharding))


def _over_updates(name: str, values: jax.Array) -> jax.Array:
    if name in ("num_tokens", "skipped_updates") or name.startswith(COUNT):
        return jnp.sum(values)
    return functools.reduce(extreme(name), values) if name.endswith(("/min", "/max")) else jnp.mean(values)


def make_eval_step(model: Transformer, objective: Objective, mesh: jax.sharding.Mesh,
                   scorer: Scorer = score) -> Callable[[Any, dict[str, jax.Array]], Loss]:
    """The jitted evaluation: (variables, batch of [1, B, T] arrays) -> the Loss of its rows, everywhere."""
    def sums(variables: Any, batch: dict[str, jax.Array]) -> Loss:
        batch = {name: column[0] for name, column in batch.items()}
        return objective(scorer(model, variables, batch), Columns(batch))

    return jax.jit(sums, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
