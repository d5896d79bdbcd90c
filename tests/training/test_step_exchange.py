"""What the train step exchanges, and the largest arrays that a device holds, by the text that it is compiled to.

On CPUs, where kinds and dtypes are this backend's own, but places and shapes are not. Sizes are such that all rows of a
copy of the weights, [B / copies, T, D], are larger than what a device holds of anything but stacks of layers.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import pytest
from tiny import CONFIG, LORA, boxed_variables

from models.lora import LoRAConfig
from models.transformer import Transformer
from objectives.sft import sft
from sharding import memory
from sharding.collectives import Collective, collectives
from sharding.hlo import Array, Loop, made_arrays
from sharding.layout import COPIES, Layout
from sharding.mesh import MeshConfig, make_layout
from sharding.placement import Placement
from training.abstract import batch_shapes, train_state_shapes
from training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from training.step import make_train_step

UNTIED = dataclasses.replace(CONFIG, vocab_size=176, num_layers=3, tie_embeddings=False, qk_norm=False, qkv_bias=False,
                             remat="dots")
B, T, K, CHUNKS = 32, 12, 2, 4
"""rows of a micro-batch and their length, micro-batches, the scorer's chunks"""
D, F, L, V = UNTIED.embed_dim, UNTIED.mlp_dim, UNTIED.num_layers, UNTIED.vocab_size


class Compiled(NamedTuple):
    """A step."""

    lora: LoRAConfig | None
    layout: Layout
    rows: int
    """of a micro-batch, on a device"""
    collectives: list[Collective]
    arrays: list[tuple[Array, tuple[Loop, ...]]]
    """that a device makes, and the loops that each is made in"""


@pytest.fixture(scope="module", params=[
    ("adamw", None, {"data": 2, "fsdp": 2}), pytest.param(("muon", None, {"fsdp": 4}), marks=pytest.mark.slow),
    pytest.param(("adamw", LORA, {"data": 2, "fsdp": 2}), marks=pytest.mark.slow)], ids=["full", "muon", "lora"])
def compiled(request):
    optimizer, lora, sizes = request.param
    layout, flags = make_layout(MeshConfig(**{"data": 1, "tensor": 2} | sizes)), OptimizerConfig(name=optimizer)
    schedule, rows = make_schedule(flags, 1e-3, 10), B // layout.ways("batch")
    model, optimizer = Transformer(UNTIED, lora, layout=layout), make_optimizer(flags, schedule)
    state = train_state_shapes(model, optimizer, layout)
    step = make_train_step(model, sft, optimizer, schedule, state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "LOGITS_ON_CPU", rows * T // CHUNKS * V // 2)
        text = step.lower(state, batch_shapes(Placement(K * B, K, layout), T)).compile().as_text()
    return Compiled(lora, layout, rows, collectives(text, layout.mesh), made_arrays(text))


def size(array):
    return math.prod(array.shape)


def test_the_scorers_loop_exchanges_nothing(compiled):
    scorers = {loops for _, loops in compiled.arrays if len(loops) == 2 and loops[1].trips == CHUNKS}
    assert len(scorers) == 2  # forward and backward
    assert not [each for each in compiled.collectives if each.loops in scorers]


def test_the_head_is_gathered_and_its_gradient_reduced_once_a_micro_batch(compiled):
    head = [each for each in compiled.collectives if each.axes == ("fsdp",) and any(V // 2 in array.shape
                                                                                    for array in each.operands)]
    gathered = sum(each.times for each in head if each.kind == "all-gather")
    assert 1 <= gathered <= 2 * K
    assert sum(each.times for each in head) - gathered == (0 if compiled.lora else K)


def test_no_device_holds_all_of_the_vocabulary(compiled):
    assert not [array for array, _ in compiled.arrays if V in array.shape]


def test_no_device_holds_all_rows(compiled):
    """Of a copy of the weights. Stacks of layers are larger."""
    activations = [array for array, _ in compiled.arrays if array.shape[:1] != (L,)]
    assert max(map(size, activations)) < B // compiled.layout.size(COPIES) * T * D


def test_no_device_holds_a_whole_stack_of_matrices(compiled):
    """Nor one that is split over tensor alone."""
    in_update = [array for array, loops in compiled.arrays if not loops or loops[0].trips != K]
    assert max(map(size, in_update)) < L * D * F // 2


def test_gradients_are_summed_over_copies_once_a_step(compiled):
    over_copies = [each for each in compiled.collectives if "data" in each.axes]
    assert all(array.shape == () for each in over_copies for array in each.operands if each.loops)  # losses
    summed = sum(size(array) for each in over_copies for array in each.operands if not each.loops)
    trained = L * D * (LORA.rank if compiled.lora else F)
    assert compiled.layout.size(COPIES) == 1 or summed >= trained / 4


def test_weights_are_gathered_once_forward_and_once_backward(compiled):
    gathered = sum(each.times * size(array) for each in compiled.collectives for array in each.results
                   if len(each.loops) == 2 and each.kind == "all-gather")
    layers = {name: each["layers"] for name, each in boxed_variables(compiled.lora, UNTIED).items()}
    boxes = jax.tree.leaves(layers, is_leaf=lambda leaf: hasattr(leaf, "unbox"))
    split = sum(size(box.unbox()) // (1 if "rank" in box.names else 2) for box in boxes if "embed" in box.names)
    assert gathered == 2 * K * split


def test_activations_alone_are_summed_over_tensor_in_layers(compiled):
    over_tensor = [each for each in compiled.collectives if each.axes == ("tensor",) and len(each.loops) == 2]
    assert {each.kind for each in over_tensor} == {"all-reduce"}
    forward = [each for each in over_tensor if "transpose" not in each.loops[1].name]
    assert sum(each.times for each in forward) == 2 * K * L
    features = {size(array) // (compiled.rows * T) for each in forward for array in each.operands}
    assert features == ({D, LORA.rank} if compiled.lora else {D})
