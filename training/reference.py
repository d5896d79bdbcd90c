"""The reference policy: what it says of a batch, computed before the step, travels in the batch as `ref_logps`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from batch import MicroBatch, RowLayout
from models.config import ModelConfig
from models.pretrained import Pretrained, load_merged
from models.scoring import score
from models.transformer import Transformer
from objectives.base import declared
from objectives.dpo import chosen_length
from objectives.kto import mismatched, reference_point
from sharding.layout import Layout, check_layout
from training.runs import TrainedRun
from training.state import TrainState
from training.step import Objective, Scorer

Batch = dict[str, jax.Array]


class Prepared(NamedTuple):
    """(state, batch) -> the batch with what is computed before the step."""

    compiled: Callable[..., Batch]
    """(state, frozen, batch), jitted"""
    frozen: Any
    """the reference's variables; None where they are of the state"""

    def __call__(self, state: TrainState, batch: Batch) -> Batch:
        return self.compiled(state, self.frozen, batch)


def needs_reference(objective: Objective) -> bool:
    """Whether an objective says that it reads `ref_logps`."""
    return "ref_logps" in declared(objective)


def load_reference(opened: Pretrained | TrainedRun, policy: ModelConfig,
                   layout: Layout) -> tuple[Transformer, dict[str, Any]]:
    """(model, variables) of an opened model as a frozen reference, in the policy's compute dtype."""
    config, params = load_merged(opened, layout, dtype=policy.dtype, attention=policy.attention, param_dtype="float32")
    return Transformer(config, layout=layout), {"params": _as_computed(params, config.dtype)}


def _as_computed(params: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Every weight as the transformer uses it: the scales of norms in float32, the others in `dtype`. So a frozen copy
    of the policy says the same as the policy, in half the memory."""
    def cast(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf if path[-1].key == "scale" else leaf.astype(dtype)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    return jax.jit(lambda params: jax.tree_util.tree_map_with_path(cast, params), out_shardings=shardings)(params)


def score_batch(model: Transformer, variables: dict[str, Any], batch: Batch) -> jax.Array:
    """log p of every token, [K, B, T], one micro-batch after the other."""
    columns = {name: batch[name] for name in ("tokens", "positions", "segment_ids", "row_length") if name in batch}
    return jax.lax.map(lambda micro: score(model, variables, micro).logps, columns)


def reference_variables(state: TrainState, frozen: dict[str, Any] | None) -> dict[str, Any]:
    """A reference that follows the policy; else the frozen one; else, under LoRA, the policy without its adapter."""
    if state.reference is not None:
        return state.with_trainable(state.reference).variables()
    return {"params": state.params} if frozen is None else frozen


def prepare_pairs(reference: Transformer, frozen: dict[str, Any] | None, layout: Layout,
                  objective: Objective) -> Prepared:
    """Adds `chosen_length` (objectives/dpo.py) to a batch, and `ref_logps` if the objective needs it and the data
    had none."""
    check_layout(reference, layout.sharding())
    needed = needs_reference(objective)

    def add(state: TrainState, frozen: Any, batch: Batch) -> Batch:
        added = {"chosen_length": chosen_length(batch["loss_mask"])}
        if needed and "ref_logps" not in batch:
            added["ref_logps"] = score_batch(reference, reference_variables(state, frozen), batch)
        return batch | added

    return _jitted(add, frozen, layout)


def prepare_labelled(policy: Transformer, reference: Transformer, frozen: dict[str, Any] | None,
                     layout: Layout) -> Prepared:
    """Of rows and their mismatched rows in turn, the rows with `ref_logps`, and `kto_z` from the mismatched ones.

    z is of the whole batch, all micro-batches and devices (objectives/kto.py).
    """
    check_layout(policy, layout.sharding())
    check_layout(reference, layout.sharding())

    def add(state: TrainState, frozen: Any, batch: Batch) -> Batch:
        paired = {name: column.reshape(column.shape[0], -1, 2, *column.shape[2:]) for name, column in batch.items()}
        own, other = ({name: column[:, :, place] for name, column in paired.items()} for place in (0, 1))
        variables = reference_variables(state, frozen)
        own, other = (rows | {"ref_logps": score_batch(reference, variables, rows)} for rows in (own, other))
        scores = _Logps(_flat(score_batch(policy, state.variables(), other)))
        z = reference_point(*mismatched(scores, {name: _flat(other[name]) for name in ("loss_mask", "ref_logps")}))
        return own | {"kto_z": jnp.broadcast_to(z, own["loss_mask"].shape[:2])}

    return _jitted(add, frozen, layout)


def prepare_rollouts(policy: Transformer, reference: Transformer | None, frozen: dict[str, Any] | None,
                     layout: Layout, scorer_of: Callable[[RowLayout], Scorer],
                     old: bool) -> Callable[[TrainState, MicroBatch], MicroBatch]:
    """Adds to a micro-batch `old_logps` if `old`, the policy's before its first update, and `ref_logps` where there is
    a reference. Each shape and row layout is compiled once."""
    for model in (policy, reference or policy):
        check_layout(model, layout.sharding())

    def logps(state: TrainState, frozen: Any, columns: Batch, row_layout: RowLayout) -> Batch:
        scorer = scorer_of(row_layout)
        added = {"old_logps": scorer(policy, state.variables(), columns).logps} if old else {}
        if reference is not None:
            added["ref_logps"] = scorer(reference, reference_variables(state, frozen), columns).logps
        return added

    compiled = jax.jit(logps, static_argnums=3, out_shardings=layout.sharding("batch"))

    def prepare(state: TrainState, batch: MicroBatch) -> MicroBatch:
        columns = {name: batch.columns[name] for name in ("tokens", "positions", "segment_ids")}
        added = compiled(state, frozen, columns, batch.row_layout) if old or reference is not None else {}
        return batch._replace(columns=batch.columns | added)

    prepare.compiled = compiled  # (state, frozen, columns, row layout)
    return prepare


class _Logps(NamedTuple):
    """The scores that `mismatched` reads."""

    logps: jax.Array


def _flat(array: jax.Array) -> jax.Array:
    """[K, B, T] as [K * B, T]."""
    return array.reshape(-1, array.shape[-1])


def _jitted(add: Callable[..., Batch], frozen: Any, layout: Layout) -> Prepared:
    """`frozen` is an argument, for what a jitted function closes over is a constant of its program."""
    return Prepared(jax.jit(add, out_shardings=layout.sharding(None, "batch")), frozen)
