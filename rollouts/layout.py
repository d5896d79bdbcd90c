"""How weights lie while sampling: split over `tensor` alone, whole in every share of the rows.

Training splits weights over fsdp, too, and gathers them for each use; for every token that would be all of the time. So
the devices of a training mesh are numbered anew for sampling, in their order: what was fsdp is tensor as far as heads
divide, and data beyond.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from errors import InputError
from models.decoding import Weights, prepare
from models.transformer import Transformer, init_variables
from sharding.rules import RULES, mesh_axes, path_name, ways
from sharding.settings import SamplingMesh

DEFAULT = SamplingMesh()


def sampling_mesh(mesh: Mesh, model: Transformer, sampling: SamplingMesh = DEFAULT) -> Mesh:
    """The devices of a training mesh, for sampling. Raises InputError where the sizes do not fit their number."""
    devices = np.asarray(mesh.devices).reshape(-1)
    data, tensor = sampling.data, sampling.tensor
    if -1 in (data, tensor):
        together = math.prod(mesh.shape.get(axis, 1) for axis in ("fsdp", "tensor"))
        fixed = max(data, 1)
        tensor = tensor if tensor != -1 else len(devices) // fixed if data != -1 else math.gcd(
            model.config.num_kv_heads, together)
        data = data if data != -1 else len(devices) // max(tensor, 1)
    if min(data, tensor) < 1 or data * tensor != len(devices):
        raise InputError(f"--sampling.mesh.data {sampling.data} --sampling.mesh.tensor {sampling.tensor} do not fit "
                         f"{len(devices)} device(s): sizes are positive, or -1, and their product is that number")
    return Mesh(devices.reshape(data, 1, tensor), ("data", "fsdp", "tensor"),
                axis_types=(jax.sharding.AxisType.Auto,) * 3)


def check_weights(model: Transformer, variables: dict[str, Any]) -> None:
    """Raises InputError unless these are the variables of this model: names, shapes, floating point; `lora` may be
    absent."""
    wanted = nn.unbox(_boxed_variables(model))
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise InputError("weights of another model: there are no params among them")
    if "lora" in variables and model.lora is None:
        raise InputError("weights of another model: an adapter (lora) is among them, and the model has none")
    for name in ("params", "lora"):
        if name in variables:
            _check_tree(wanted[name], variables[name])


@functools.cache
def _boxed_variables(model: Transformer) -> dict[str, Any]:
    """Shapes and axis names."""
    return jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))


def _check_tree(wanted: Any, given: Any) -> None:
    one, other = ({path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
                  for tree in (wanted, given))
    for name in sorted(one.keys() | other.keys()):
        shapes = [np.shape(tree[name]) if name in tree else "none" for tree in (one, other)]
        if shapes[0] != shapes[1]:
            raise InputError(f"weights of another model: {name} has the shape {shapes[1]}, and {shapes[0]} is the "
                             f"model's")
        if not jnp.issubdtype(jnp.result_type(other[name]), jnp.floating):
            raise InputError(f"weights of another model: {name} is {jnp.result_type(other[name])}, and no floating "
                             f"point number")


def num_shares(mesh: Mesh, model: Transformer, sampling: SamplingMesh = DEFAULT) -> int:
    """Ways that the slots are split while sampling."""
    return ways(RULES["batch"], sampling_mesh(mesh, model, sampling))


def weight_shapes(model: Transformer, mesh: Mesh) -> Any:
    """Shapes with their shardings of what models.decoding.prepare gives; an axis that does not divide is whole
    everywhere."""
    boxed = _boxed_variables(model)
    axes = jax.tree.map(lambda leaf: leaf.names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    shapes: Weights = jax.eval_shape(functools.partial(prepare, model), nn.unbox(boxed))
    return jax.tree.map(lambda names, shape: jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=NamedSharding(mesh, _spec(names, shape.shape, mesh))),
                        _axes_of_prepared(model, axes), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


@functools.cache
def preparing(model: Transformer, mesh: Mesh) -> Callable[[Any], Weights]:
    """models.decoding.prepare, onto this layout; compiled once for all engines that have it."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def lay_out(variables: dict[str, Any]) -> Weights:
        params = variables["params"]  # from rows of fsdp to columns of tensor XLA goes by way of the whole, and warns
        whole = {name: jax.lax.with_sharding_constraint(params[name], everywhere)
                 for name in ("embedding", "lm_head") if name in params}
        return prepare(model, variables | {"params": params | whole})

    return jax.jit(lay_out, out_shardings=jax.tree.map(lambda shape: shape.sharding, weight_shapes(model, mesh)))


def _axes_of_prepared(model: Transformer, axes: Any) -> Any:
    """Layers apart."""
    layer = jax.tree.map(lambda names: names[1:], axes["params"]["layers"],
                         is_leaf=lambda leaf: isinstance(leaf, tuple))
    head = {} if model.config.tie_embeddings else {"lm_head": axes["params"]["lm_head"][::-1]}
    return axes["params"] | head | {"layers": [layer] * model.config.num_layers}


def _spec(names: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    return PartitionSpec(*(entry if size % ways(entry, mesh) == 0 else None
                           for entry, size in zip(mesh_axes(names), shape, strict=True)))
