"""What links a group has: by the torus, rings twice, the network between slices."""

import numpy as np
import pytest

from errors import InputError
from planning.chips import KINDS, chip_named, chip_of, exchange_speed, group_speed
from sharding.memory import HBM_GIB
from training.throughput import PEAK_TFLOPS

V5P = chip_of("TPU v5")


def grid(*sizes):
    return np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(-1, len(sizes))


@pytest.mark.parametrize(("sizes", "links"), [((2, 1, 1), 1), ((2, 2, 1), 2), ((2, 2, 2), 3), ((4, 1, 1), 2),
                                              ((4, 4, 2), 5), ((3, 1, 1), 1)])
def test_a_link_each_way_of_an_axis_and_two_of_a_ring(sizes, links):
    coords = grid(*sizes)
    assert exchange_speed(V5P, coords, np.zeros(len(coords))) == links * V5P.link_speed


def test_between_slices_it_is_the_network():
    coords = grid(2, 1, 1)
    assert exchange_speed(V5P, coords, np.array([0, 1])) == V5P.network_speed
    shape = {"slice": 2, "fsdp": 2}
    devices = np.concatenate([coords, coords]), np.array([0, 0, 1, 1])
    assert group_speed(V5P, ("fsdp",), shape, devices) == V5P.link_speed
    assert group_speed(V5P, ("slice", "fsdp"), shape, devices) == V5P.network_speed


def test_cores_of_one_chip_exchange_through_its_memory():
    assert exchange_speed(V5P, np.zeros((2, 3), int), np.zeros(2)) == V5P.memory_speed


def test_the_tables_agree():
    for name, kind in KINDS.items():
        chip = chip_named(f"{name}:2x2")
        assert chip.peak_flops == PEAK_TFLOPS[kind] * 1e12
        assert 0.97 * HBM_GIB[kind] * 2**30 < chip.memory <= HBM_GIB[kind] * 2**30
        assert 30 < chip.peak_flops / chip.memory_speed < 700


def test_what_is_not_known_is_named():
    with pytest.raises(InputError, match="no chip 'v9' is known; there are v5e, v6e, v5p, tpu7x"):
        chip_named("v9:2x2")
    with pytest.raises(InputError, match="TPU v3: planning/chips.py knows TPU v5 lite"):
        chip_of("TPU v3")
