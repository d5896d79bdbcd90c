"""How weights lie while sampling: split over `tensor` alone, whole in every share of the rows.

Training splits weights over fsdp, too, and gathers them for each use; for every token that would be all of the time. So
the devices of a training mesh are numbered anew for sampling, in their order: what was fsdp is tensor as far as heads
divide, and data beyond.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from errors import InputError
from models.decoding import Weights
from models.transformer import Transformer, init_variables
from sharding.rules import mesh_axes, ways


def sampling_mesh(mesh: Mesh, model: Transformer, tensor: int = 0) -> Mesh:
    """The devices of a training mesh, for sampling; `tensor` ways, or with 0 as many as kv heads and the devices of
    fsdp and tensor allow. Raises InputError where that does not divide the devices."""
    devices = np.asarray(mesh.devices).reshape(-1)
    tensor = tensor or math.gcd(model.config.num_kv_heads, mesh.shape["fsdp"] * mesh.shape["tensor"])
    if len(devices) % tensor:
        raise InputError(f"--sampling.tensor {tensor} does not divide {len(devices)} devices; give a divisor of it")
    return Mesh(devices.reshape(-1, 1, tensor), ("data", "fsdp", "tensor"),
                axis_types=(jax.sharding.AxisType.Auto,) * 3)


def weight_shardings(model: Transformer, mesh: Mesh) -> Any:
    """Of what models.decoding.prepare gives, leaf by leaf; an axis that does not divide is whole everywhere."""
    boxed = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))["params"]
    axes = jax.tree.map(lambda leaf: leaf.names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    shapes: Weights = jax.eval_shape(lambda params: _prepared(model, params), nn.unbox(boxed))
    return jax.tree.map(lambda names, shape: NamedSharding(mesh, _spec(names, shape.shape, mesh)),
                        _axes_of_prepared(model, axes), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def _prepared(model: Transformer, params: Any) -> Weights:
    from models.decoding import prepare

    return prepare(model, {"params": params})


def _axes_of_prepared(model: Transformer, axes: Any) -> Any:
    """Layers apart, and kernels with their axes the other way round."""
    layers = [_of_layer(axes["layers"]) for _ in range(model.config.num_layers)]
    head = {} if model.config.tie_embeddings else {"lm_head": axes["lm_head"][::-1]}
    return axes | head | {"layers": layers}


def _of_layer(axes: Any) -> Any:
    return {"rows" if name == "kernel" else name: _of_layer(value) if isinstance(value, dict)
            else value[:0:-1] if name == "kernel" else value[1:] for name, value in axes.items()}


def _spec(names: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    return PartitionSpec(*(entry if size % ways(entry, mesh) == 0 else None
                           for entry, size in zip(mesh_axes(names), shape, strict=True)))
