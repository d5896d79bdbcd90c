"""Rows over the mesh: each once, records of several rows never torn apart."""

import jax
import numpy as np
import pytest

from sharding.mesh import MeshConfig, make_layout
from sharding.placement import Placement


def numbered(records, group):
    return {"tokens": np.arange(1, records * group + 1)[:, None] * np.ones((1, 4), int)}


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("num_microbatches", [None, 1, 2, 3])
@pytest.mark.parametrize("records", [4, 7, 16])
def test_every_row_is_placed_once_and_in_order(records, num_microbatches, group):
    placement = Placement(records, num_microbatches, make_layout(MeshConfig(data=2, fsdp=2, tensor=2)), group)
    placed = np.asarray(placement.put(numbered(records, group), list(range(records)))["tokens"])
    assert placed.shape == (*placement.shape, 4)
    flat = placed[..., 0].ravel()
    assert flat[flat > 0].tolist() == list(range(1, records * group + 1))
    assert placement.local_rows() == list(range(records))


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_pair_is_on_one_device_and_in_one_micro_batch(num_microbatches):
    placement = Placement(6, num_microbatches, make_layout(MeshConfig(data=8)), group=2)
    array = placement.put(numbered(6, 2), list(range(6)))["tokens"]
    for shard in array.addressable_shards:
        for micro in np.asarray(shard.data)[..., 0]:
            pairs = {(number - 1) // 2 for number in micro if number}
            assert sorted(number for number in micro if number) == [2 * pair + each for pair in sorted(pairs)
                                                                    for each in (1, 2)]
    assert len(array.addressable_shards) == len(jax.devices())
