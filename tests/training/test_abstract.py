"""Shapes of a state are those of the state that a run makes."""

import jax
import optax
from tiny import CONFIG, LORA, padded, put, rows, variables_on

from models.transformer import Transformer
from sharding.mesh import MeshConfig, make_layout
from sharding.placement import Placement
from training.abstract import batch_shapes, train_state_shapes
from training.state import init_state


def assert_alike(shapes, made):
    assert jax.tree.structure(shapes) == jax.tree.structure(made)
    for shape, array in zip(jax.tree.leaves(shapes), jax.tree.leaves(made), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)


def test_a_state_and_a_batch_in_shapes():
    layout, optimizer = make_layout(MeshConfig(data=2, fsdp=2, tensor=2)), optax.adam(1e-3)
    model = Transformer(CONFIG, layout=layout)
    state = init_state(model, variables_on(layout)["params"], optimizer, jax.random.key(0), layout)
    assert_alike(train_state_shapes(model, optimizer, layout), state)
    moment = state.opt_state[0].mu["layers"]["mlp"]["gate"]["kernel"]
    assert moment.sharding.shard_shape(moment.shape) == (2, 16, 32)  # as its parameter
    assert_alike(batch_shapes(Placement(16, 2, layout), 9), put(padded(rows([9] * 16)), layout, 2))


def test_a_state_with_lora_has_optimiser_state_for_it_alone():
    layout = make_layout(MeshConfig(fsdp=8))
    state = train_state_shapes(Transformer(CONFIG, LORA, layout=layout), optax.adam(1e-3), layout)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (state.opt_state[0].mu, state.lora)]
    assert shapes[0] == shapes[1] != [leaf.shape for leaf in jax.tree.leaves(state.params)]


def test_packed_rows_and_further_columns():
    placement = Placement(8, None, make_layout(MeshConfig(data=8)))
    shapes = batch_shapes(placement, 5, packed=True, further=("ref_logps",))
    assert {name: str(each.dtype) for name, each in shapes.items()} == {
        "tokens": "int32", "positions": "int32", "segment_ids": "int32", "loss_mask": "float32", "ref_logps": "float32"}
    assert {each.shape for each in shapes.values()} == {(8, 5)}
