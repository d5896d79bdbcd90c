"""How much of a step is computed at a time by default: on CPUs, as much as the machine holds without swapping.

On accelerators it is the user's to divide. Whatever the parts, loss and gradient are the same (training/step.py).
"""

import dataclasses
import functools
import math
from typing import Any, TypeVar

from cli.command import print_once

Flags = TypeVar("Flags")

SHARE = 1 / 2
"""of a machine's memory that weights, optimiser state and activations may take"""
OTHERS = 2**30
"""bytes for the interpreter, compiled programs and a chunk of logits"""
TRAINED = 20
"""bytes of a weight that is trained: float32, its two moments, its gradient summed and of a micro-batch"""
MOST_TOKENS = 16384
"""positions of an online run's micro-batch where memory does not ask for less"""


def with_microbatches(flags: Flags, config: Any, streams: Any, objective: Any, group: int = 1) -> Flags:
    """The flags with a --num-microbatches, for a step of rows as `streams` makes them, `group` to a record."""
    longest = max(streams.lengths) if streams.packing == "none" else streams.length
    return with_microbatches_of(flags, config, longest, objective, group)


def with_microbatches_of(flags: Flags, config: Any, longest: int, objective: Any, group: int = 1) -> Flags:
    """The same for rows of up to `longest` tokens. A loss that couples the rows of a batch has it whole."""
    if flags.num_microbatches is not None:
        return flags
    positions = None if getattr(objective, "couples_rows", False) else positions_at_a_time(flags, config, longest)
    parts = num_parts(flags.batch_size, group * longest, positions)
    if parts > 1:
        print_once(f"note: a step is computed in {parts} parts, so that this machine's memory holds it; "
                   f"--num-microbatches, or --remat dots, changes that")
    return dataclasses.replace(flags, num_microbatches=parts)


def with_microbatch_tokens(flags: Flags, config: Any, longest: int) -> Flags:
    """The flags with a --microbatch-tokens, for rows of up to `longest` tokens."""
    if flags.microbatch_tokens is not None:
        return flags
    positions = positions_at_a_time(flags, config, longest)
    if positions is not None and positions < MOST_TOKENS:
        print_once(f"note: micro-batches have up to {positions:,} tokens, so that this machine's memory holds them; "
                   f"--microbatch-tokens, or --remat dots, changes that")
    return dataclasses.replace(flags, microbatch_tokens=min(MOST_TOKENS, positions or MOST_TOKENS))


def num_parts(records: int, each: int, positions: int | None) -> int:
    """Equal parts of so many records of `each` positions, of which none has more than `positions` (None: one part);
    a record is not divided."""
    if positions is None:
        return 1
    return next(parts for parts in range(1, records + 1)
                if parts == records or (records % parts == 0 and records // parts * each <= positions))


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
