"""How weights lie while sampling: split over `tensor` alone, whole in every share of the rows.

Training splits weights over fsdp, too, and gathers them for each use; for every token that would be all of the time. So
the devices of a training mesh are numbered anew for sampling, in their order: what was fsdp is tensor as far as heads
divide, and data beyond.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from errors import InputError, shown
from models.decoding import Weights, layer_groups, prepare
from models.transformer import Transformer, init_variables
from sharding.layout import AXES, RULES, Layout, path_name
from sharding.settings import SamplingMesh

DEFAULT = SamplingMesh()


def sampling_layout(layout: Layout, model: Transformer, sampling: SamplingMesh = DEFAULT) -> Layout:
    """Of the devices of a training layout, for sampling: by the rules as they stand in sharding/layout.py, whatever
    --mesh.rules say of training. Raises InputError where the sizes do not fit the devices."""
    devices, slices = layout.mesh.devices.reshape(-1), layout.mesh.shape["slice"]
    data, tensor = sampling.data, sampling.tensor
    if -1 in (data, tensor):
        together = layout.size(("fsdp", "tensor"))
        fixed = max(data, 1)
        tensor = tensor if tensor != -1 else len(devices) // fixed if data != -1 else math.gcd(
            model.config.num_kv_heads, together)
        data = data if data != -1 else len(devices) // max(tensor, 1)
    if min(data, tensor) < 1 or data * tensor != len(devices):
        raise InputError(f"--sampling.mesh.data {sampling.data} --sampling.mesh.tensor {sampling.tensor} do not fit "
                         f"{len(devices)} device(s): sizes are positive, or -1, and their product is that number")
    if data % slices:
        raise InputError(f"--sampling.mesh.tensor {tensor} would split heads over the network between {slices} slices; "
                         f"give one that divides a slice's {len(devices) // slices} devices")
    sizes = dict.fromkeys(AXES, 1) | {"slice": slices, "data": data // slices, "tensor": tensor}
    mesh = Mesh(devices.reshape(*sizes.values()), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))
    return dataclasses.replace(layout, mesh=mesh, rules=tuple(RULES.items()))


def check_weights(model: Transformer, variables: dict[str, Any]) -> None:
    """Raises InputError unless these are the variables of this model: names, shapes, floating point, and on its
    devices, if on several; `lora` may be absent."""
    wanted = nn.unbox(_boxed_variables(model))
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise InputError("weights of another model: there are no params among them")
    if "lora" in variables and model.lora is None:
        raise InputError("weights of another model: an adapter (lora) is among them, and the model has none")
    for name in ("params", "lora"):
        if name in variables:
            _check_tree(wanted[name], variables[name])
    _check_devices(model.layout, variables)


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


def _check_devices(layout: Layout, variables: dict[str, Any]) -> None:
    for leaf in jax.tree.leaves(variables):
        where = getattr(leaf, "sharding", None)
        if isinstance(where, NamedSharding) and where.mesh.size > 1 and where.device_set != {*layout.mesh.devices.flat}:
            raise InputError(f"the weights lie on the mesh {shown(dict(where.mesh.shape))} and the engine samples "
                             f"on {layout.mesh.size} other device(s): make it with their layout")


def num_shares(layout: Layout, model: Transformer, sampling: SamplingMesh = DEFAULT) -> int:
    """Ways that the slots are split while sampling."""
    return sampling_layout(layout, model, sampling).ways("batch")


def weight_shapes(model: Transformer) -> Any:
    """Shapes with their shardings, by the model's layout, of what models.decoding.prepare gives; an axis that does not
    divide is whole everywhere."""
    boxed = _boxed_variables(model)
    axes = jax.tree.map(lambda leaf: leaf.names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    shapes: Weights = jax.eval_shape(functools.partial(prepare, model), nn.unbox(boxed))
    return jax.tree.map(lambda names, shape: jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=_sharding(model.layout, names, shape.shape)),
                        _axes_of_prepared(model, axes), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


@functools.cache
def preparing(model: Transformer) -> Callable[[Any], Weights]:
    """models.decoding.prepare, onto the model's layout; compiled once for all engines that have it."""
    everywhere = model.layout.sharding()

    def lay_out(variables: dict[str, Any]) -> Weights:
        params = variables["params"]  # from rows of fsdp to columns of tensor XLA goes by way of the whole, and warns
        whole = {name: jax.lax.with_sharding_constraint(params[name], everywhere)
                 for name in ("embedding", "lm_head") if name in params}
        return prepare(model, variables | {"params": params | whole})

    return jax.jit(lay_out, out_shardings=jax.tree.map(lambda shape: shape.sharding, weight_shapes(model)))


def _axes_of_prepared(model: Transformer, axes: Any) -> Any:
    """Groups of layers apart."""
    groups = [axes["params"]["layers"]] * len(layer_groups(model.config, model.layout))
    head = {} if model.config.tie_embeddings else {"lm_head": axes["params"]["lm_head"][::-1]}
    return axes["params"] | head | {"layers": groups}


def _sharding(layout: Layout, names: tuple[str, ...], shape: tuple[int, ...]) -> NamedSharding:
    entries = zip(layout.entries(names), shape, strict=True)
    return NamedSharding(layout.mesh, PartitionSpec(
        *(entry if size % layout.size(entry) == 0 else None for entry, size in entries)))
