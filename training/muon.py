"""Muon's updates: momentum, every matrix of it orthogonalised (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982).

Newton-Schulz wants whole matrices, and weights lie in pieces. So over a mesh each device gives its piece of most layers
for the whole of a few (an all-to-all), orthogonalises these, and gets its pieces of the results back: what it holds at
a time is about what it held before, and no stack of layers is whole anywhere.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from sharding.layout import names_of, path_name

MOMENTUM = 0.95


def _last_two_axes(updates: Any) -> Any:
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), updates)


_muon = optax.contrib.scale_by_muon(beta=MOMENTUM, weight_dimension_numbers=_last_two_axes)
_forgetful = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=_last_two_axes)
"""whose momentum is the gradient: Newton-Schulz alone"""


def scale_by_muon() -> optax.GradientTransformationExtraArgs:
    """optax.contrib.scale_by_muon of stacks [L, in, out], with its state. `update` takes `shardings`, a tree of
    NamedSharding that says where the parameters lie; without it, it is left to the compiler, which gathers the stacks.
    """
    def update(updates: Any, state: optax.contrib.MuonState, params: Any = None, *, shardings: Any = None,
               **_: Any) -> tuple[Any, optax.contrib.MuonState]:
        if shardings is None or jax.tree.leaves(shardings)[0].num_devices == 1:
            return _muon.update(updates, state, params)
        where = {path_name(path): sharding for path, sharding in jax.tree.leaves_with_path(shardings)}
        state, momentum = _nesterov(updates, state)
        return jax.tree_util.tree_map_with_path(
            lambda path, stack: orthogonalise(stack, where[path_name(path)]), momentum), state

    return optax.GradientTransformationExtraArgs(_muon.init, update)


def _nesterov(grads: Any, state: optax.contrib.MuonState) -> tuple[optax.contrib.MuonState, Any]:
    """m <- b m + (1 - b) g; b m / (1 - b^(t + 1)) + (1 - b) g / (1 - b^t) at step t is orthogonalised."""
    mu, count = optax.tree.update_moment(grads, state.mu, MOMENTUM, 1), optax.safe_increment(state.count)
    momentum = jax.tree.map(lambda m, g: MOMENTUM * m + (1 - MOMENTUM) * g,
                            optax.tree.bias_correction(mu, MOMENTUM, optax.safe_increment(count)),
                            optax.tree.bias_correction(grads, MOMENTUM, count))
    return state._replace(count=count, mu=mu), momentum


def newton_schulz(stack: Float[Array, "L m n"]) -> Float[Array, "L m n"]:
    return _forgetful.update(stack, _forgetful.init(stack))[0]


def orthogonalise(stack: Float[Array, "L m n"], sharding: NamedSharding) -> Float[Array, "L m n"]:
    """newton_schulz of a stack that lies as `sharding` says, each device at whole matrices of its own."""
    mesh, spec = sharding.mesh, sharding.spec
    _, rows, columns = (names_of(entry) for entry in (*spec, None, None, None)[:3])
    split_by = {name for entry in spec for name in names_of(entry)}
    copies = tuple(name for name in mesh.axis_names if name not in split_by and name != "slice")  # its network is slow
    function = functools.partial(_by_layer, rows=rows, columns=columns, copies=copies, sizes=dict(mesh.shape))
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(stack)


def _by_layer(pieces: Float[Array, "L i o"], rows: tuple[str, ...], columns: tuple[str, ...], copies: tuple[str, ...],
              sizes: dict[str, int]) -> Float[Array, "L i o"]:
    """On a device: matrices are split over the mesh axes `rows` and `columns`, and alike over `copies`."""
    (layers, height, width), split = pieces.shape, rows + columns
    down, across, parts = (math.prod(sizes[name] for name in names) for names in (rows, columns, copies))
    parts = parts if layers > down * across else 1  # else each copy has one matrix a device, the same as the others
    own = -(-layers // (down * across * parts))
    count = own * down * across  # layers of this copy, of which `own` matrices are this device's
    start = jax.lax.axis_index(copies) * count if parts > 1 else 0
    x = jnp.pad(pieces, ((0, count * parts - layers), (0, 0), (0, 0)))
    x = jax.lax.dynamic_slice_in_dim(x, start, count)
    x = jax.lax.all_to_all(x, split, 0, 0, tiled=True) if split else x
    x = x.reshape(down, across, own, height, width).transpose(2, 0, 3, 1, 4)
    x = newton_schulz(x.reshape(own, down * height, across * width))
    x = x.reshape(own, down, height, across, width).transpose(1, 3, 0, 2, 4).reshape(count, height, width)
    x = jax.lax.all_to_all(x, split, 0, 0, tiled=True) if split else x
    return _from_copies(x, start, copies, count * parts, layers) if parts > 1 else x[:layers]


def _from_copies(part: Float[Array, "C i o"], start: Array, copies: tuple[str, ...], filled: int,
                 layers: int) -> Float[Array, "L i o"]:
    """All layers, of which each copy has a part; gathered, or summed where that moves less."""
    if filled <= 2 * layers:
        return jax.lax.all_gather(part, copies, tiled=True)[:layers]
    zeros = jnp.zeros((filled, *part.shape[1:]), part.dtype)
    return jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(zeros, part, start, 0)[:layers], copies)
