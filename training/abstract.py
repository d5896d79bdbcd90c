"""A run's state and batches as shapes with shardings: what a step is compiled from where no array is to be made."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from batch import COUNT, Row, pad
from models.transformer import Transformer, init_variables
from sharding.layout import Layout
from sharding.placement import Placement
from training.state import TrainState


def train_state_shapes(model: Transformer, optimizer: optax.GradientTransformation, layout: Layout) -> TrainState:
    """The state that training.state.init_state makes around params that lie as the layout says."""
    boxed = _boxed(model)
    opt_state = jax.eval_shape(optimizer.init, boxed.get("lora", boxed["params"]))
    step, rng = jax.eval_shape(lambda: (jnp.zeros((), jnp.int32), jax.random.key(0)))
    state = TrainState(step, boxed["params"], boxed.get("lora"), opt_state, rng)
    return _placed(state, layout)


def variable_shapes(model: Transformer, layout: Layout) -> dict[str, Any]:
    """Those of a frozen model, as the layout says."""
    return _placed(_boxed(model), layout)


def _boxed(model: Transformer) -> Any:
    return jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))


def _placed(boxed: Any, layout: Layout) -> Any:
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                        nn.meta.unbox(boxed), layout.tree_shardings(boxed))


def batch_shapes(placement: Placement, length: int, packed: bool = False,
                 further: tuple[str, ...] = (), counts: tuple[str, ...] = ()) -> dict[str, Any]:
    """A batch of rows of `length` tokens as the loop puts it onto the mesh; `further` columns are float32, `counts`
    are int32, one a row."""
    row = Row(np.zeros(length, np.int32), np.zeros(length, np.float32), {name: np.zeros(length) for name in further})
    columns = pad([row.columns()], [length])
    if packed:
        del columns["row_length"]
    columns |= {COUNT + name: np.zeros(1, np.int32) for name in counts}
    return {name: jax.ShapeDtypeStruct((*placement.shape, *column.shape[1:]), column.dtype, sharding=placement.sharding)
            for name, column in columns.items()}
