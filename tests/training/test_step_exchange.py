"""What the train step exchanges, and the largest arrays that a device holds, by the text that it is compiled to.

On CPUs, where kinds and dtypes are this backend's own, but places and shapes are not. Sizes are such that all rows of a
copy of the weights, [B / 2, T, D], are larger than what a device holds of anything but stacks of layers.
"""

import dataclasses
import math

import jax
import pytest
from tiny import CONFIG, LORA, boxed_variables

from models.transformer import Transformer
from objectives.sft import sft
from sharding import memory
from sharding.collectives import collectives
from sharding.hlo import made_arrays
from sharding.mesh import MeshConfig, make_layout
from sharding.placement import Placement
from training.abstract import batch_shapes, train_state_shapes
from training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from training.step import make_train_step

UNTIED = dataclasses.replace(CONFIG, vocab_size=176, num_layers=3, tie_embeddings=False, qk_norm=False, qkv_bias=False,
                             remat="dots")
B, T, K, CHUNKS, TENSOR = 32, 12, 2, 4, 2
"""rows of a micro-batch and their length, micro-batches, the scorer's chunks, devices along `tensor`"""
D, F, L, V = UNTIED.embed_dim, UNTIED.mlp_dim, UNTIED.num_layers, UNTIED.vocab_size


@pytest.fixture(scope="module", params=[
    ("adamw", None), *(pytest.param(case, marks=pytest.mark.slow) for case in (("muon", None), ("adamw", LORA)))],
    ids=["full", "muon", "lora"])
def compiled(request):
    """(text, collectives, LoRA) of a step on data 2 x fsdp 2 x tensor 2."""
    name, lora = request.param
    layout, flags = make_layout(MeshConfig(data=2, fsdp=2, tensor=TENSOR)), OptimizerConfig(name=name)
    schedule = make_schedule(flags, 1e-3, 10)
    model, optimizer = Transformer(UNTIED, lora, layout=layout), make_optimizer(flags, schedule)
    state = train_state_shapes(model, optimizer, layout)
    step = make_train_step(model, sft, optimizer, schedule, state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "LOGITS_ON_CPU", B // 4 * T // CHUNKS * V // TENSOR)
        text = step.lower(state, batch_shapes(Placement(K * B, K, layout), T)).compile().as_text()
    return text, collectives(text, layout.mesh), lora


def of_vocabulary(array):
    return {V, V // TENSOR} & {*array.shape}


def test_the_scorers_loop_exchanges_nothing(compiled):
    text, found, _ = compiled
    scorers = {loops for _, loops in made_arrays(text) if len(loops) == 2 and loops[1].trips == CHUNKS}
    assert len(scorers) == 2  # forward and backward
    assert not [each for each in found if each.loops in scorers]


def test_the_head_is_gathered_and_its_gradient_reduced_once(compiled):
    _, found, lora = compiled
    head = [each for each in found if any(map(of_vocabulary, each.operands)) and each.axes == ("fsdp",)]
    gathered = sum(each.times for each in head if each.kind == "all-gather")
    assert 1 <= gathered <= 2 * K
    assert sum(each.times for each in head) - gathered == (0 if lora else K)


def test_no_device_holds_all_rows(compiled):
    arrays = [array for array, _ in made_arrays(compiled[0]) if array.shape[:1] != (L,)]
    assert max(math.prod(array.shape) for array in arrays) < B // 2 * T * D


def test_no_device_holds_a_whole_stack_of_matrices(compiled):
    outside = [math.prod(array.shape) for array, loops in made_arrays(compiled[0]) if not loops]
    assert max(outside) < L * D * F


def test_gradients_are_summed_over_copies_once_a_step(compiled):
    in_loops = [each for each in compiled[1] if "data" in each.axes and each.loops]
    assert all(array.shape == () for each in in_loops for array in each.operands)  # losses
    once = [array for each in compiled[1] if each.axes == ("data",) and not each.loops for array in each.operands]
    assert sum(math.prod(array.shape) for array in once) >= L * D * (LORA.rank if compiled[2] else F) / 4


def test_weights_are_gathered_once_forward_and_once_backward(compiled):
    _, found, lora = compiled
    gathered = sum(each.times * math.prod(array.shape) for each in found for array in each.results
                   if len(each.loops) == 2 and each.kind == "all-gather")
    layers = jax.tree.leaves({name: each["layers"] for name, each in boxed_variables(lora, UNTIED).items()},
                             is_leaf=lambda leaf: hasattr(leaf, "unbox"))
    split = [math.prod(leaf.unbox().shape) // (1 if "rank" in leaf.names else TENSOR)
             for leaf in layers if "embed" in leaf.names]
    assert K * sum(split) < gathered <= 2 * K * sum(split)


def test_activations_alone_are_summed_over_tensor_in_layers(compiled):
    _, found, lora = compiled
    over_tensor = [each for each in found if each.axes == ("tensor",) and len(each.loops) == 2]
    assert {each.kind for each in over_tensor} == {"all-reduce"}
    forward = [each for each in over_tensor if "transpose" not in each.loops[1].name]
    assert sum(each.times for each in forward) == 2 * K * L
    assert {math.prod(array.shape) for each in forward for array in each.operands} == {
        B // 4 * T * size for size in ((D, LORA.rank) if lora else (D,))}
