"""The train step: micro-batches added up, one division, one guarded update.

The micro-batches are of one shape, under lax.scan (make_train_step), or of several, each a call of its own
(make_accumulated_step); what is added up, and what follows, is the same.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from batch import COUNT, MicroBatch, RowLayout
from errors import InputError
from models.scoring import score
from models.transformer import Transformer
from objectives.base import Loss, combine, combined, extreme, zero_loss
from sharding.layout import COPIES, Layout, check_layout
from training.objective_call import call_objective
from training.optimizer import with_shardings
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


class Sums(NamedTuple):
    """What micro-batches add up to."""

    loss: Loss
    grads: Any
    """of the summed loss, float32, [C, ...]: each copy of the weights has the sum of its own rows"""
    counted: dict[str, jax.Array]
    """num_tokens, positions and the sums of columns count/NAME"""
    number: jax.Array
    """of micro-batches"""


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
        sums = accumulate(model, objective, state, batch, scorer)
        state, metrics = _finish(model, state, sums, optimizer, schedule)
        return after_update(state), metrics

    check_layout(model, state)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    optimizer = with_shardings(optimizer, shardings.trainable)
    everywhere = state.step.sharding  # so that every process can read the metrics
    return jax.jit(step, donate_argnums=0, in_shardings=(shardings, None), out_shardings=(shardings, everywhere))


def make_accumulated_step(model: Transformer, objective: Objective, optimizer: optax.GradientTransformation,
                          schedule: optax.Schedule, state: TrainState,
                          scorer_of: Callable[[RowLayout], Scorer]) -> Callable[..., Any]:
    """A step of micro-batches that may differ in rows, length and row layout: (state, one or more MicroBatch) ->
    (state, metrics, logps); the state is donated.

    Loss, gradient and metrics are make_train_step's. `logps` are each micro-batch's log-probabilities [B, T] as its
    gradient saw them, or what else the scorer's scores begin with. A shape and row layout is compiled once, however
    many micro-batches a step has; those of `ahead`, further micro-batches that nothing is made of, are compiled for
    later steps.
    """
    check_layout(model, state)
    shardings, everywhere = jax.tree.map(lambda leaf: leaf.sharding, state), state.step.sharding
    optimizer = with_shardings(optimizer, shardings.trainable)
    by_row = None if model.layout is None else model.layout.sharding("batch")
    copies = num_copies(model, objective)
    of_sums = Sums(everywhere, _of_copies(copies, shardings.trainable), everywhere, everywhere)
    zeros = {}

    def make_zeros(state: TrainState, first: MicroBatch) -> Callable[[], Sums]:
        return functools.partial(_zeros, copies, *_shapes(model, objective, scorer_of(first.row_layout), state,
                                                          first.columns))

    def start(state: TrainState, first: MicroBatch) -> Sums:
        names = frozenset(first.columns)  # they alone, and no shape, say what is added up
        if names not in zeros:
            zeros[names] = jax.jit(make_zeros(state, first), out_shardings=of_sums)
        return zeros[names]()

    def sums_of(state: TrainState, first: MicroBatch) -> Sums:
        shapes = jax.eval_shape(make_zeros(state, first))
        return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                            shapes, jax.tree.broadcast(of_sums, shapes))

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=3, in_shardings=(of_sums, shardings, None),
                       out_shardings=(of_sums, by_row))
    def add(sums: Sums, state: TrainState, columns: dict[str, jax.Array],
            row_layout: RowLayout) -> tuple[Sums, jax.Array]:
        columns, counted = _count(columns)
        added, scores = _add(model, objective, scorer_of(row_layout), sums, state, columns)
        return added._replace(counted=jax.tree.map(jnp.add, sums.counted, counted)), scores[0]

    finish = jax.jit(lambda state, sums: _finish(model, state, sums, optimizer, schedule), donate_argnums=0,
                     in_shardings=(shardings, of_sums), out_shardings=(shardings, everywhere))

    def step(state: TrainState, micro_batches: Sequence[MicroBatch],
             ahead: Sequence[MicroBatch] = ()) -> tuple[TrainState, dict[str, jax.Array], list[jax.Array]]:
        check_split(objective, len(micro_batches))
        for columns, row_layout in ahead:
            add(start(state, micro_batches[0]), state, columns, row_layout)
        sums, logps = start(state, micro_batches[0]), []
        for columns, row_layout in micro_batches:
            sums, scored = add(sums, state, columns, row_layout)
            logps.append(scored)
        return *finish(state, sums), logps

    step.add, step.finish, step.sums_of = add, finish, sums_of  # what it compiles, and its sums as shapes
    return step


def _finish(model: Transformer, state: TrainState, sums: Sums, optimizer: optax.GradientTransformation,
            schedule: optax.Schedule) -> tuple[TrainState, dict[str, jax.Array]]:
    """The one division, and the update, if it is finite. Here gradients are summed over the copies of the weights."""
    (total, weight, by_name, extremes), counted = sums.loss, dict(sums.counted)
    denominator = jnp.where(weight > 0, weight, 1.0)
    dtype = "float32" if model.layout is None else model.layout.reduce_dtype
    grads = jax.tree.map(lambda grad: _sum_of_copies(grad, dtype) / denominator, sums.grads)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(total)
    updated = _update(state, grads, optimizer)
    chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old),
                          (updated.trainable, updated.opt_state), (state.trainable, state.opt_state))
    learning_rate = schedule(optimizer_steps(state.opt_state))
    state = state.with_trainable(chosen[0]).replace(opt_state=chosen[1], step=state.step + 1)
    metrics = {name: value / jnp.where(count > 0, count, 1.0) for name, (value, count) in by_name.items()}
    metrics |= extremes | {"loss": total / denominator, "grad_norm": grad_norm, "learning_rate": learning_rate,
                           "loss_weight": weight, "skipped_updates": 1 - finite.astype(jnp.int32)}
    metrics["padding"] = 1.0 - counted["num_tokens"] / counted.pop("positions")
    return state, metrics | counted


def _sum_of_copies(grads: jax.Array, dtype: str) -> jax.Array:
    """[C, ...] -> [...], exchanged in `dtype` (jnp.sum would in float32, whatever it is)."""
    if len(grads) == 1:
        return grads[0]
    return jax.lax.reduce(grads.astype(dtype), jnp.zeros((), dtype), jax.lax.add, (0,)).astype(grads.dtype)


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
                         f"set --num-microbatches 1 (online: a larger --microbatch-tokens), or choose another loss")


def accumulate(model: Transformer, objective: Objective, state: TrainState, batch: dict[str, jax.Array],
               scorer: Scorer = score) -> Sums:
    """The sums over the K micro-batches of a batch of [K, B, T] arrays."""
    check_split(objective, len(batch["tokens"]))
    shapes = _shapes(model, objective, scorer, state, jax.tree.map(lambda x: x[0], batch))
    columns, counted = _count(batch)  # once, and not in the loop, where each sum is an exchange

    def body(sums: Sums, columns: dict[str, jax.Array]) -> tuple[Sums, None]:
        return _add(model, objective, scorer, sums, state, columns)[0], None

    zeros = _zeros(num_copies(model, objective), *shapes)._replace(counted={})
    return jax.lax.scan(body, zeros, columns)[0]._replace(counted=counted)


def _add(model: Transformer, objective: Objective, scorer: Scorer, sums: Sums, state: TrainState,
         columns: dict[str, jax.Array]) -> tuple[Sums, Any]:
    """The sums with one more micro-batch, but for what is counted in it, and its scores."""
    loss, scores, grads = _gradients(model, objective, scorer, state, columns, sums.number)
    grads = jax.tree.map(lambda sum, grad: sum + grad.astype(jnp.float32), sums.grads, grads)
    return Sums(combine(sums.loss, loss), grads, sums.counted, sums.number + 1), scores


def _gradients(model: Transformer, objective: Objective, scorer: Scorer, state: TrainState,
               columns: dict[str, jax.Array], number: jax.Array) -> tuple[Loss, Any, Any]:
    """(loss, scores, gradients [C, ...]) of the step's micro-batch of this number.

    Each of the C copies of the weights computes the gradient of its own rows, and none of it is exchanged with the
    others here: that is done once a step, not once a micro-batch.
    """
    def of_copy(model: Transformer, columns: dict[str, jax.Array], key: jax.Array) -> tuple[Loss, Any, Any]:
        (_, (loss, scores)), grads = jax.value_and_grad(_micro_loss, has_aux=True)(
            state.trainable, model, objective, scorer, state, columns, key)
        return loss, scores, grads

    copies, key = num_copies(model, objective), jax.random.fold_in(jax.random.fold_in(state.rng, state.step), number)
    if copies == 1:
        loss, scores, grads = of_copy(model, columns, key)
        return loss, scores, jax.tree.map(lambda grad: grad[None], grads)
    model = model.clone(layout=model.layout.without(*COPIES))
    columns = jax.tree.map(lambda column: column.reshape(copies, -1, *column.shape[1:]), columns)
    losses, scores, grads = jax.vmap(functools.partial(of_copy, model), spmd_axis_name=COPIES)(
        columns, jax.random.split(key, copies))
    return combined(losses), jax.tree.map(lambda score: score.reshape(-1, *score.shape[2:]), scores), grads


def num_copies(model: Transformer, objective: Objective) -> int:
    """How many copies of the weights have gradients of their own: one where the rows of a batch are coupled."""
    if model.layout is None or getattr(objective, "couples_rows", False):
        return 1
    return model.layout.size(COPIES)


def _of_copies(copies: int, shardings: Any) -> Any:
    """Shardings of gradients [C, ...]."""
    def of_copies(each: Any) -> Any:
        spec = jax.sharding.PartitionSpec(COPIES if copies > 1 else None, *each.spec)
        return jax.sharding.NamedSharding(each.mesh, spec)

    return jax.tree.map(of_copies, shardings)


def _micro_loss(trainable: Any, model: Transformer, objective: Objective, scorer: Scorer, state: TrainState,
                columns: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, tuple[Loss, Any]]:
    """(total, (loss, scores)) of rows."""
    scores = scorer(model, state.with_trainable(trainable).variables(), columns, rngs={"dropout": key})
    loss = call_objective(objective, scores, Columns(columns))
    return loss.total, (loss, scores)


def _count(columns: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The columns without those count/NAME, and what is counted in them."""
    used = columns["segment_ids"] != 0
    counted = {"num_tokens": jnp.sum(used), "positions": jnp.asarray(used.size)}
    counted |= {name: jnp.sum(column) for name, column in columns.items() if name.startswith(COUNT)}
    return {name: column for name, column in columns.items() if not name.startswith(COUNT)}, counted


def _shapes(model: Transformer, objective: Objective, scorer: Scorer, state: TrainState,
            columns: dict[str, jax.Array]) -> tuple[Any, Loss, dict[str, Any]]:
    """Shapes of the trainable collection, and of a micro-batch's loss and of what is counted in it."""
    def shaped(trainable: Any, state: TrainState, columns: dict[str, jax.Array]) -> Any:
        columns, counted = _count(columns)
        return _micro_loss(trainable, model, objective, scorer, state, columns, state.rng)[1][0], counted

    trainable = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.trainable)
    return trainable, *jax.eval_shape(shaped, state.trainable, state, columns)


def _zeros(copies: int, trainable: Any, loss: Loss, counted: dict[str, Any]) -> Sums:
    """The sums of no micro-batch."""
    grads = jax.tree.map(lambda leaf: jnp.zeros((copies, *leaf.shape), jnp.float32), trainable)
    counted = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), counted)
    return Sums(zero_loss(loss), grads, counted, jnp.zeros((), jnp.int32))


def make_minibatch_updates(step: Callable[..., Any], state: TrainState) -> Callable[..., Any]:
    """Several updates from one batch of rollouts: (state, mini-batches, num_iterations, ahead) -> (state, metrics,
    logps); the state is donated.

    `step` is make_accumulated_step's. A mini-batch is a sequence of micro-batches, and an update; they are gone through
    `num_iterations` times in the same order. `logps` are the step's, of every mini-batch, when it was first gone
    through. Metrics are means over updates, but sums of tokens and of skipped updates, and extremes of all. Each update
    has a key of its own; `state.step` counts batches.
    """
    jitted = functools.partial(jax.jit, out_shardings=state.step.sharding)
    zero = jitted(jnp.zeros_like)
    of_update = jitted(lambda step, rng, number: (jnp.copy(step), jax.random.fold_in(rng, number), number + 1))
    end = jitted(lambda step, every: (step + 1, {name: _over_updates(name, jnp.stack([each[name] for each in every]))
                                                 for name in every[0]}))

    def updates(state: TrainState, minibatches: Sequence[Sequence[MicroBatch]], num_iterations: int = 1,
                ahead: Sequence[MicroBatch] = ()) -> tuple[TrainState, dict[str, jax.Array], list[list[jax.Array]]]:
        of_batch, number, metrics, logps = (state.step, state.rng), zero(state.step), [], []
        for micro_batches in [*minibatches] * num_iterations:
            at, key, number = of_update(*of_batch, number)
            state, *results = step(state.replace(step=at, rng=key), micro_batches, () if metrics else ahead)
            metrics.append(results[0])
            logps += [results[1]] if len(logps) < len(minibatches) else []  # no further pass is held on the devices
        count, merged = end(of_batch[0], metrics)
        return state.replace(step=count, rng=of_batch[1]), merged, logps

    return updates


def make_skip(state: TrainState) -> Callable[..., Any]:
    """A batch of rollouts in which nothing is updated: (state, metrics of another update of it) -> (state, metrics of
    none); only `state.step` is another."""
    count = jax.jit(lambda step: step + 1, out_shardings=state.step.sharding)
    none = jax.jit(jnp.zeros_like, out_shardings=state.step.sharding)(state.step)

    def skip(state: TrainState, others: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        metrics = {name: others[name] for name in ("num_tokens", "padding")}
        return state.replace(step=count(state.step)), metrics | {"skipped_updates": none}

    return skip


def _over_updates(name: str, values: jax.Array) -> jax.Array:
    if name in ("num_tokens", "skipped_updates") or name.startswith(COUNT):
        return jnp.sum(values)
    return functools.reduce(extreme(name), values) if name.endswith(("/min", "/max")) else jnp.mean(values)


def make_eval_step(model: Transformer, objective: Objective, layout: Layout,
                   scorer: Scorer = score) -> Callable[[Any, dict[str, jax.Array]], Loss]:
    """The jitted evaluation: (variables, batch of [1, B, T] arrays) -> the Loss of its rows, everywhere."""
    def sums(variables: Any, batch: dict[str, jax.Array]) -> Loss:
        batch = {name: column[0] for name, column in batch.items()}
        return call_objective(objective, scorer(model, variables, batch), Columns(batch))

    check_layout(model, layout.sharding())
    return jax.jit(sums, out_shardings=layout.sharding())
