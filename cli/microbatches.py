"""How much of a step is computed at a time by default: on CPUs, as much as the machine holds without swapping.

On accelerators it is the user's to divide. Whatever the parts, loss and gradient are the same (training/step.py).
"""

import dataclasses
import functools
import math
from typing import Any, TypeVar

from cli.command import print_once
from sharding.layout import Layout
from sharding.placement import Placement

Flags = TypeVar("Flags")

SHARE = 1 / 2
"""of a machine's memory that weights, optimiser state and activations may take"""
OTHERS = 2**30
"""bytes for the interpreter, compiled programs and a chunk of logits"""
TRAINED = 20
"""bytes of a weight that is trained: float32, its two moments, its gradient summed and of a micro-batch"""
MOST_TOKENS = 16384
"""positions of an online run's micro-batch where memory does not ask for less"""


def with_microbatches(flags: Flags, config: Any, streams: Any, objective: Any, layout: Layout,
                      group: int = 1) -> Flags:
    """The flags with a --num-microbatches, for a step of rows as `streams` makes them, `group` to a record."""
    longest = max(streams.lengths) if streams.packing == "none" else streams.length
    return with_microbatches_of(flags, config, longest, objective, layout, group)


def with_microbatches_of(flags: Flags, config: Any, longest: int, objective: Any, layout: Layout,
                         group: int = 1) -> Flags:
    """The same for rows of up to `longest` tokens. A loss that couples the rows of a batch has it whole."""
    if flags.num_microbatches is not None:
        return flags
    positions = None if couples_rows(objective) else positions_at_a_time(flags, config, longest)
    parts = num_parts(Placement(flags.batch_size, 1, layout, group), longest, positions)
    if parts > 1:
        print_once(f"note: a step is computed in {parts} parts, so that this machine's memory holds it; "
                   f"--num-microbatches, or --remat dots, changes that")
    return dataclasses.replace(flags, num_microbatches=parts)


def with_microbatch_tokens(flags: Flags, config: Any, longest: int, objective: Any, layout: Layout) -> Flags:
    """The flags with a --microbatch-tokens, which are of each device, for rows of up to `longest` tokens."""
    if flags.microbatch_tokens is not None:
        return flags
    positions = None if couples_rows(objective) else positions_at_a_time(flags, config, longest)
    each = MOST_TOKENS if positions is None else max(1, positions // shards_of_a_process(layout))
    if each < MOST_TOKENS:
        print_once(f"note: micro-batches have up to {each:,} tokens on each device, so that this machine's memory "
                   f"holds them; --microbatch-tokens, or --remat dots, changes that")
    return dataclasses.replace(flags, microbatch_tokens=min(MOST_TOKENS, each))


def couples_rows(objective: Any) -> bool:
    return getattr(objective, "couples_rows", False)


def shards_of_a_process(layout: Layout) -> int:
    """Parts of the rows that the devices of one process hold."""
    import jax

    return -(-layout.ways("batch") // jax.process_count())


def num_parts(whole: Placement, longest: int, positions: int | None) -> int:
    """The fewest micro-batches of which a process has no more than `positions` (None: one), and which hold no more
    empty rows than the whole; where there are none, as many as there are rows of a device."""
    records, shards = whole.batch_size, whole.layout.ways("batch")
    if positions is None:
        return 1
    rows = {parts: dataclasses.replace(whole, num_microbatches=parts).shape[1]
            for parts in range(1, -(-records // shards) + 1)}
    fitting = [parts for parts, each in rows.items()
               if parts * each <= rows[1] and each // shards * shards_of_a_process(whole.layout) * longest <= positions]
    return min(fitting, default=max(rows))


def positions_at_a_time(flags: Any, config: Any, longest: int) -> int | None:
    """Positions of a micro-batch that fit beside the model that is trained; None on accelerators. The same number in
    all processes."""
    import jax

    from models.activations import bytes_of_position
    from sharding.exchange import gather
    from sharding.memory import machine_memory

    if jax.default_backend() != "cpu":
        return None
    config = dataclasses.replace(config, dtype=flags.dtype, remat=flags.remat)
    left = SHARE * min(gather(machine_memory())) - OTHERS - bytes_of_model(flags, config)
    return max(1, int(left // bytes_of_position(config, longest)))


def bytes_of_model(flags: Any, config: Any) -> int:
    """Of weights and, if they are trained, what AdamW has of them."""
    lora = getattr(flags, "lora", None)
    return num_weights(config) * ((2 if flags.dtype == "bfloat16" else 4) if lora and lora.rank else TRAINED)


@functools.cache
def num_weights(config: Any) -> int:
    import jax

    from models.weights import abstract_params

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))
