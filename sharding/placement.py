"""Where the rows of a batch live: which of them this process must read, and how they become one global array."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sharding.layout import Layout


@dataclasses.dataclass(frozen=True)
class Placement:
    """Records of a batch over the mesh: as rows [K, b] for a train step of K micro-batches, as [b] where K is None.

    A record is `group` adjacent rows (the two answers of a pair), which stay on one device and in one micro-batch. b is
    the smallest number that holds all of them and divides over the devices; what is left over is empty rows.
    """

    batch_size: int
    """records"""
    num_microbatches: int | None
    layout: Layout
    group: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        shards, count = self.layout.ways("batch"), self.num_microbatches or 1
        each = -(-self.batch_size // (count * shards)) * shards * self.group
        return (count, each) if self.num_microbatches else (each,)

    @property
    def sharding(self) -> NamedSharding:
        lead = (None,) if self.num_microbatches else ()
        return self.layout.sharding(*lead, "batch")

    def local_rows(self) -> list[int]:
        """The records that devices of this process hold; those on a tensor axis across processes are read by each.

        At least one: a process whose devices hold only what is left over needs the shapes of rows, as all others do.
        """
        numbers = np.arange(np.prod(self.shape)).reshape(self.shape) // self.group
        held = self.sharding.addressable_devices_indices_map(self.shape).values()
        rows = sorted({int(row) for index in held for row in numbers[index].flat if row < self.batch_size})
        return rows or [self.batch_size - 1]

    def put(self, batch: dict[str, np.ndarray], rows: list[int]) -> dict[str, jax.Array]:
        """Arrays [len(rows) * group, ...] of the records `rows` as global arrays [K, b, ...] or [b, ...]; every process
        gives its own."""
        numbers = np.arange(np.prod(self.shape)).reshape(self.shape)
        given = (np.asarray(rows)[:, None] * self.group + np.arange(self.group)).ravel()
        places = np.full(numbers.size, len(given))  # one past the end: an empty row
        places[given] = np.arange(len(given))

        def make(array: np.ndarray) -> jax.Array:
            filled = np.concatenate([array, np.zeros_like(array[:1])])
            lead = len(self.shape)
            return jax.make_array_from_callback(self.shape + array.shape[1:], self.sharding,
                                                lambda index: filled[places[numbers[index[:lead]]]])

        return {name: make(array) for name, array in batch.items()}


def put_rows(column: np.ndarray, layout: Layout) -> jax.Array:
    """A column [B, ...] that every process has, on the devices, split by rows."""
    return jax.make_array_from_callback(column.shape, layout.sharding("batch"), lambda index: column[index])


def fetch(array: jax.Array) -> np.ndarray:
    """The whole of a global array, in every process."""
    if not array.is_fully_addressable:
        array = _everywhere(NamedSharding(array.sharding.mesh, PartitionSpec()))(array)
    return np.asarray(jax.device_get(array))


@functools.cache
def _everywhere(sharding: NamedSharding) -> Any:
    return jax.jit(lambda array: array, out_shardings=sharding)
