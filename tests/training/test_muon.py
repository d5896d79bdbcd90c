"""Matrices of a stack orthogonalised on devices of their own: the same values, and what that exchanges and holds."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sharding.collectives import collectives
from sharding.hlo import made_arrays
from sharding.layout import AXES
from training.muon import newton_schulz, orthogonalise


@pytest.mark.parametrize(("sizes", "spec", "layers", "exchanged"), [
    ((1, 2, 2, 2), ("fsdp", "tensor"), 30, [("all-to-all", ("fsdp", "tensor")), ("all-gather", ("data",))]),
    ((1, 1, 4, 2), ("tensor", "fsdp"), 30, [("all-to-all", ("fsdp", "tensor"))]),
    ((1, 8, 1, 1), (), 3, [("all-reduce", ("data",))]),  # most of what eight gave would be filling
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ((1, 8, 1, 1), (), 30, [("all-gather", ("data",))]),
        ((2, 1, 2, 2), (("fsdp", "tensor"),), 5, [("all-to-all", ("fsdp", "tensor"))]),  # each slice by itself
        ((1, 2, 4, 1), (None, "fsdp"), 2, [("all-to-all", ("fsdp",))]),  # each copy by itself
        ((2, 4, 1, 1), (), 9, [("all-gather", ("data",))]),
        ((1, 1, 1, 8), ("tensor",), 8, [("all-to-all", ("tensor",))])])])
def test_each_device_orthogonalises_matrices_of_its_own(sizes, spec, layers, exchanged):
    mesh = Mesh(np.array(jax.devices()).reshape(sizes), AXES)
    sharding = NamedSharding(mesh, PartitionSpec(None, *spec))
    stack = np.random.default_rng(0).normal(size=(layers, 16, 24)).astype("f")
    compiled = jax.jit(lambda stack: orthogonalise(stack, sharding), out_shardings=sharding).lower(
        jax.ShapeDtypeStruct(stack.shape, stack.dtype, sharding=sharding)).compile()
    np.testing.assert_allclose(compiled(jax.device_put(stack, sharding)), newton_schulz(stack), atol=1e-5)
    found = collectives(compiled.as_text(), mesh)
    assert {(each.kind, each.axes) for each in found} == set(exchanged)
    if spec:
        assert max(array.bytes for array, _ in made_arrays(compiled.as_text())) <= stack.nbytes / 2
