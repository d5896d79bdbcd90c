"""The bytes that a device must send for one train step, by what lies where: what a compiled step is held to."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.transformer import Transformer, init_variables
from sharding.layout import COPIES, Layout, names_of, path_name

RECOMPUTED = {"none": 0, "dots": 0, "attention": 1, "offload": 1, "full": 1}
"""sums over tensor of a layer's forward pass that remat makes again: attention's, for the mlp; of the mlp's, which the
next layer keeps, nothing is recomputed"""
SCORES = 5
"""numbers of a token that the parts of a vocabulary agree on"""


class LeastExchange(NamedTuple):
    """Bytes that a device sends in a step."""

    weights: float
    """gathered over fsdp, in the compute dtype, for the forward and the backward pass of each micro-batch"""
    embedding: float
    """rows of it that were looked up, and their gradients, exchanged over fsdp"""
    gradients: float
    """reduce-scattered over fsdp, once a micro-batch"""
    copies: float
    """of gradients, summed over the devices that hold the same piece of a weight, once a step"""
    activations: float
    """of the residual stream, summed over tensor"""
    scores: float
    """that the parts of a vocabulary agree on"""
    optimizer: float
    """momentum to devices that each have whole matrices, and back (Muon)"""

    @property
    def total(self) -> float:
        return sum(self)


class Weight(NamedTuple):
    """A parameter on the mesh."""

    name: str
    shape: tuple[int, ...]
    ways: int
    """pieces that it is split into"""
    fsdp: int
    """of these, over fsdp"""

    @property
    def piece(self) -> int:
        """Elements that a device holds."""
        return math.prod(self.shape) // self.ways


def least_exchange(model: Transformer, optimizer: str, layout: Layout, rows: int, length: int,
                   num_microbatches: int) -> LeastExchange:
    """For a step of `rows` x `length` tokens in K micro-batches, scored by models.scoring.score, under the usual rules.

    With f and t the sizes of the mesh axes fsdp and tensor, c of those that copy weights (slice, data); p the elements
    that a device holds of a weight, split s ways, so that r = devices / s hold the same; w the bytes of a number in the
    compute dtype, g of a gradient while it is reduced; N tokens of a device in a micro-batch, D embed, L layers:

        weights       2 K sum of p w (f - 1) over the layers' weights split over fsdp, and K p w (f - 1) of the head,
                      whose backward pass follows the forward pass at once
        embedding     K N D (w + 4) (f - 1) / f
        gradients     K sum of p g (f - 1) over trained weights split over fsdp, but for an embedding that is no head
        copies        sum of 2 p 4 (r - 1) / r over trained weights
        activations   K N D (L (4 + RECOMPUTED) + 2) 2 w (t - 1) / t: of a layer two forward, two backward; the rows of
                      the embedding forward, the scorer's gradient backward
        scores        K N SCORES 2 4 (t - 1) / t
        optimizer     Muon: sum of 2 p 4 (s - 1) / (s q) + p 4 (q - 1) / q over stacks of matrices, of which the copies
                      share the work, q = c, where a stack has more than s layers, else q = 1

    O(1) numbers, such as the gradient's norm, are left out.
    """
    boxed = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    config, (fsdp, tensor) = model.config, (layout.mesh.shape[name] for name in ("fsdp", "tensor"))
    params, trained = (_weights(boxed[name], layout) for name in ("params", "lora" if model.lora else "params"))
    looked_up = "" if config.tie_embeddings else "embedding"
    used = [each for each in (params + trained if model.lora else params) if each.name != looked_up]
    width, gradient = (jnp.dtype(dtype).itemsize for dtype in (config.dtype, layout.reduce_dtype))
    tokens = num_microbatches * -(-rows // (num_microbatches * layout.ways("batch"))) * length
    sums = 2 * (tensor - 1) / tensor
    return LeastExchange(
        weights=num_microbatches * sum((2 if each.name.startswith("layers/") else 1) * each.piece * width
                                       * (each.fsdp - 1) for each in used),
        embedding=tokens * config.embed_dim * (width + (0 if model.lora else 4)) * (fsdp - 1) / fsdp,
        gradients=num_microbatches * sum(each.piece * gradient * (each.fsdp - 1) for each in trained
                                         if each.name != looked_up),
        copies=sum(2 * each.piece * 4 * (1 - each.ways / layout.mesh.size) for each in trained),
        activations=tokens * config.embed_dim * (config.num_layers * (4 + RECOMPUTED[config.remat]) + 2) * width * sums,
        scores=tokens * SCORES * 4 * sums,
        optimizer=sum(_muon(each, layout.size(COPIES)) for each in trained) if optimizer == "muon" else 0.0)


def _muon(weight: Weight, copies: int) -> float:
    if not weight.name.startswith("layers/") or weight.name.endswith(("scale", "bias")):
        return 0.0
    share = copies if weight.shape[0] > weight.ways else 1
    return 4 * weight.piece * (2 * (1 - 1 / weight.ways) / share + 1 - 1 / share)


def _weights(boxed: Any, layout: Layout) -> list[Weight]:
    def weight(path: Any, leaf: Any) -> Weight:
        name, shape = path_name(path), leaf.unbox(apply_constraint=False).shape
        spec = layout.param_spec(name, shape, leaf.get_partition_spec())
        split = tuple(axis for entry in spec for axis in names_of(entry))
        return Weight(name, shape, layout.size(split), layout.mesh.shape["fsdp"] if "fsdp" in split else 1)

    boxes = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda leaf: hasattr(leaf, "unbox"))
    return [weight(path, leaf) for path, leaf in boxes]
