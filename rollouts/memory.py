"""How much memory sampling takes: what the cache may have, and what a layout puts on each device."""

import math
from typing import Any

import jax
import numpy as np

from models.transformer import Transformer
from sharding.exchange import gather
from sharding.memory import machine_memory

PAGE = 128
"""positions of a page"""
MEMORY_SHARE = 0.25
"""of all memory that the cache may take"""


def capacity_for(model: Transformer, num_slots: int, longest: int, page: int = PAGE, shares: int = 1,
                 memory: int | None = None) -> int:
    """Positions for contexts of the longest length in all slots, or as many as a part of the memory holds: then the
    youngest requests may have to wait with what they have drawn. Each of the `shares` of the slots (layout.num_shares)
    has positions of its own, for one such context at the least. `memory` is that of all devices, where these are not
    here."""
    config = model.config
    position = 2 * config.num_layers * config.num_kv_heads * config.head_dim * np.dtype(config.dtype).itemsize
    one, slots = -(-longest // page) * page, -(-num_slots // shares) * shares
    return min(slots * one, max(shares * (one + page), int(MEMORY_SHARE * (memory or _memory()) / position)))


def _memory() -> int:
    """Bytes of all devices, or what may be taken of the machines; the same number in all processes, by the smallest of
    their own."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [each["bytes_limit"] for each in stats if "bytes_limit" in each]
    own = sum(limits) if limits else machine_memory()
    return min(gather(own)) * jax.process_count()


def bytes_of_device(tree: Any) -> int:
    """Bytes that the fullest device holds of arrays, or of shapes with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
