"""FLOPs of a traced program: its matrix products, as often as its loops run them.

XLA's own count (`cost_analysis()["flops"]`) has a loop's body once, and of a Pallas kernel nothing.
"""

import math
from typing import Any, NamedTuple


class Flops(NamedTuple):
    """Of all devices together."""

    products: float
    """of dot_general: 2 for each number of the result and of what is summed"""
    kernels: float
    """of products in Pallas kernels, of blocks that a causal mask leaves out none"""

    def __add__(self, other: "Flops") -> "Flops":  # type: ignore[override]
        return Flops(self.products + other.products, self.kernels + other.kernels)

    def __mul__(self, times: float) -> "Flops":  # type: ignore[override]
        return Flops(self.products * times, self.kernels * times)


NONE = Flops(0.0, 0.0)


def count_flops(jaxpr: Any) -> Flops:
    """Of a jaxpr, what the backward pass computes again included. A `while` whose rounds are not known counts once, of
    the branches of a `cond` the one with the most."""
    return sum((_of_equation(each) for each in getattr(jaxpr, "jaxpr", jaxpr).eqns), NONE)


def _of_equation(equation: Any) -> Flops:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return Flops(_product(equation), 0.0)
    if name == "cond":
        return max((count_flops(branch) for branch in params["branches"]), key=sum)
    if name == "while":
        return count_flops(params["body_jaxpr"])
    inside = sum((count_flops(each) for each in _inner(params)), NONE)
    if name == "scan":
        return inside * params["length"]
    if name == "shard_map":
        axes = params.get("newly_manual_axes", params.get("manual_axes"))  # from jax 0.12 on, and before
        return inside * math.prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        return Flops(0.0, inside.products * _blocks(params["grid_mapping"].grid))
    return inside


def _inner(params: dict[str, Any]) -> list[Any]:
    values = [each for value in params.values() for each in (value if isinstance(value, tuple | list) else [value])]
    return [value for value in values if hasattr(value, "eqns") or hasattr(value, "jaxpr")]


def _product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2.0 * summed * math.prod(equation.outvars[0].aval.shape)


def _blocks(grid: tuple[int, ...]) -> float:
    """Blocks that a causal kernel computes of a grid [..., queries, keys] or [..., keys, queries]: those on and below
    the diagonal. n x n blocks are n (n + 1) / 2."""
    *rest, one, other = grid
    return math.prod(rest) * (one * (one + 1) / 2 if one == other else one * other)
