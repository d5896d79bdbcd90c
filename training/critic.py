"""The critic: what it says of a batch before its update, computed once, travels in the batch as `values`."""

from collections.abc import Callable

import jax

from batch import Layout, MicroBatch
from models.heads import values_by
from models.transformer import Transformer
from sharding.rules import RULES
from training.state import TrainState


def prepare_values(model: Transformer, mesh: jax.sharding.Mesh) -> Callable[[TrainState, MicroBatch], MicroBatch]:
    """(the critic's state, micro-batch) -> the micro-batch with `values`. Each shape and layout is compiled once."""
    def values(state: TrainState, columns: dict[str, jax.Array], layout: Layout) -> jax.Array:
        return values_by(layout)(model, state.variables(), columns).values

    by_row = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(RULES["batch"]))
    compiled = jax.jit(values, static_argnums=2, out_shardings=by_row)

    def prepare(state: TrainState, batch: MicroBatch) -> MicroBatch:
        columns = {name: batch.columns[name] for name in ("tokens", "positions", "segment_ids")}
        return batch._replace(columns=batch.columns | {"values": compiled(state, columns, batch.layout)})

    return prepare
