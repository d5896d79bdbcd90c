"""Batches of rollouts on the devices: mini-batches of micro-batches, and columns that come and go between them and the
host."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from batch import MicroBatch
from rollouts.packing import Part, Shape, gather, num_parts, pack_minibatches, plan_shapes, put, unused
from sharding.layout import Layout

Columns = dict[str, np.ndarray]


@dataclasses.dataclass
class Minibatches:
    """A batch of rollouts on the devices."""

    host: Columns
    """the batch, an episode a row"""
    parts: list[list[Part]]
    """of each mini-batch; the last are those ahead"""
    on_device: list[list[MicroBatch]]
    """the same"""
    layout: Layout

    @property
    def updates(self) -> list[list[MicroBatch]]:
        """The mini-batches that are trained on."""
        return self.on_device[:-1]

    @property
    def ahead(self) -> list[MicroBatch]:
        """Empty micro-batches of the shapes that these have not, for the compiler."""
        return self.on_device[-1]

    def apply(self, function: Callable[[MicroBatch], MicroBatch]) -> None:
        """Micro-batches with what the function adds to each."""
        self.on_device = [[function(micro) for micro in each] for each in self.on_device]

    def column(self, name: str) -> np.ndarray:
        """A column of the micro-batches [B, T] on the host [N, T]."""
        return gather([[micro.columns[name] for micro in each] for each in self.on_device], self.parts, self.host)

    def gathered(self, columns: Sequence[Sequence[jax.Array]]) -> np.ndarray:
        """What an update gave for each micro-batch that is trained on [B, T], on the host [N, T]."""
        return gather(columns, self.parts[:-1], self.host)

    def add(self, columns: Columns) -> None:
        """Micro-batches with further columns [N] or [N, T] of the batch."""
        given = columns | {"prompt_length": self.host["prompt_length"]}
        self.on_device = [[micro._replace(columns=micro.columns | put(given, part, self.layout).columns)
                           for micro, part in zip(*each)] for each in zip(self.on_device, self.parts)]


class Packer:
    """Makes Minibatches of batches of rollouts: as many as `num_minibatches`, their micro-batches of up to `budget`
    tokens a device (rollouts.packing.plan_shapes)."""

    def __init__(self, prompt_lengths: Sequence[int], max_new_tokens: int, group_size: int, batch_size: int,
                 num_minibatches: int, budget: int, layout: Layout):
        self._count, self._group_size, self._layout, self._compiled = num_minibatches, group_size, layout, False
        self._num_groups = batch_size // num_minibatches
        self.shapes: list[Shape] = plan_shapes(prompt_lengths, max_new_tokens, group_size, self._num_groups, budget,
                                               layout.ways("batch"))

    @property
    def num_parts(self) -> int:
        """Micro-batches of a mini-batch, at the most."""
        return num_parts(self.shapes, self._group_size, self._num_groups)

    def put(self, batch: Columns) -> Minibatches:
        """The batch on the devices. The first one has micro-batches ahead: nothing is compiled after it."""
        parts = pack_minibatches(batch, self._count, self._group_size, self.shapes)
        parts.append([] if self._compiled else unused(self.shapes, parts))
        self._compiled = True
        return Minibatches(batch, parts, [[put(batch, part, self._layout) for part in each] for each in parts],
                           self._layout)
