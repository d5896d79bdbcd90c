"""What sampling and the updates of online training are called with, as shapes with shardings: nothing is made."""

from typing import Any, NamedTuple

import jax
import numpy as np

from batch import MicroBatch
from data.prompts import Prompt
from models.decoding import CACHE, init_cache
from models.transformer import Transformer
from rollouts.arguments import SEGMENT, decode_rows, page_table
from rollouts.decoder import Seen
from rollouts.engine import MIN_ROWS, SEGMENTS
from rollouts.episodes import Episode, Group, to_batch
from rollouts.layout import num_shares, sampling_layout, weight_shapes
from rollouts.memory import PAGE, capacity_for
from rollouts.packing import ON_HOST, Part, Shape, lay
from sharding.layout import Layout
from sharding.memory import memory_of
from sharding.settings import SamplingMesh


def micro_batch_shapes(shape: Shape, layout: Layout, by_token: tuple[str, ...] = (),
                       by_row: tuple[str, ...] = ()) -> MicroBatch:
    """A micro-batch of rollouts (rollouts.packing.put) with further columns, float32."""
    length = shape.prompt_length + shape.length
    answer = Episode([0] * length, shape.prompt_length, [True] * shape.length, [0.0] * shape.length)
    batch = to_batch([Group(0, Prompt([], "", {}), [answer])])
    lengths = batch["prompt_length"]
    batch |= {name: np.zeros((1, length), np.float32) for name in by_token}
    batch |= {name: np.zeros(1, np.float32) for name in by_row}
    nobody = Part(np.full(shape.slots * shape.rows, -1), shape)
    sharding = layout.sharding("batch")
    return MicroBatch({name: jax.ShapeDtypeStruct(laid.shape, laid.dtype, sharding=sharding)
                       for name, laid in ((name, lay(column, nobody, lengths)) for name, column in batch.items()
                                          if name not in ON_HOST)}, shape.row_layout)


class Sampling(NamedTuple):
    """What the engine holds, and what its calls take beside it (rollouts.decoder)."""

    model: Transformer
    weights: Any
    cache: Any
    seen: Seen
    prefill: tuple[Any, ...]
    """tokens, positions, table: the most rows that one call reads"""
    decode: tuple[Any, ...]
    """rows, patience, steps: every slot"""


def sampling_shapes(model: Transformer, num_slots: int, longest: int, layout: Layout,
                    sampling: SamplingMesh) -> Sampling:
    """Of rollouts.engine.make_engine on these devices, contexts having up to `longest` tokens."""
    shares, inside = num_shares(layout, model, sampling), sampling_layout(layout, model, sampling)
    memory = memory_of(layout.mesh.devices.flat[0])
    capacity = capacity_for(model, num_slots, longest, shares=shares, memory=memory and memory * layout.mesh.size)
    model = model.clone(layout=inside)
    of_share, pages = -(-num_slots // shares), -(-capacity // (PAGE * shares))
    cache = jax.eval_shape(lambda: init_cache(model.config, shares, pages, PAGE, inside))
    cache = jax.tree.map(lambda leaf: _placed(leaf, inside, CACHE), cache)
    slots, vocab = of_share * shares, model.config.vocab_size
    seen = Seen(*(_placed(jax.ShapeDtypeStruct((slots, vocab), dtype), inside, ("batch", "vocab"))
                  for dtype in (bool, np.int32, np.float32)))
    width = -(-longest // PAGE)
    tokens = np.zeros((SEGMENTS[1] * shares, SEGMENT), np.int32)
    rows = [None] * max(MIN_ROWS, of_share) * shares
    return Sampling(model, weight_shapes(model), cache, seen,
                    (tokens, tokens, np.zeros((len(tokens), width), np.int32)),
                    (decode_rows(rows, slots, page_table(rows, width)), np.int32(1), np.int32(1)))


def _placed(leaf: Any, layout: Layout, axes: tuple[str | None, ...]) -> jax.ShapeDtypeStruct:
    """An axis that does not divide is whole everywhere."""
    names = [name if name and size % layout.ways(name) == 0 else None for name, size in zip(axes, leaf.shape)]
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.sharding(*names))
