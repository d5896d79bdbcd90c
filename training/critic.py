"""The critic: what it says of a batch before its update, computed once, travels in the batch as `values`."""

from collections.abc import Callable

import jax

from batch import MicroBatch, RowLayout
from models.heads import values_by
from models.transformer import Transformer
from sharding.layout import Layout, check_layout
from training.state import TrainState


def prepare_values(model: Transformer, layout: Layout) -> Callable[[TrainState, MicroBatch], MicroBatch]:
    """(the critic's state, micro-batch) -> the micro-batch with `values`. Each shape and row layout is compiled once.
    """
    check_layout(model, layout.sharding())

    def values(state: TrainState, columns: dict[str, jax.Array], row_layout: RowLayout) -> jax.Array:
        return values_by(row_layout)(model, state.variables(), columns).values

    compiled = jax.jit(values, static_argnums=2, out_shardings=layout.sharding("batch"))

    def prepare(state: TrainState, batch: MicroBatch) -> MicroBatch:
        columns = {name: batch.columns[name] for name in ("tokens", "positions", "segment_ids")}
        return batch._replace(columns=batch.columns | {"values": compiled(state, columns, batch.row_layout)})

    prepare.compiled = compiled  # (state, columns, row layout)
    return prepare
