"""Where the tokens of attention's queries and keys stand, and which key a query sees."""

from typing import NamedTuple

import flax.struct
from jaxtyping import Array, Bool, Int


class SharedPrompt(NamedTuple):
    """A row of T = prompt + completions * C positions: a prompt, then completions that each see it and themselves."""

    prompt: int
    """positions of the prompt"""
    completions: int


@flax.struct.dataclass
class Places:
    """Where the tokens of queries (or keys) stand, [B, T]; blocks of them are mapped over."""

    positions: Int[Array, "... T"]
    segment_ids: Int[Array, "... T"]
    shared: SharedPrompt | None = flax.struct.field(default=None, pytree_node=False)
    lengths: Int[Array, " B"] | None = None
    """tokens of the one segment that each row holds; None where rows may hold several"""
    starts: Int[Array, " B"] | None = None
    """columns where these segments begin; None where all begin in column 0"""
    table: Int[Array, "B M"] | None = None
    """when decoding: the pages of the cache where positions [0, M * page) of a row lie"""


def visible(queries: Places, keys: Places, window: int | None) -> Bool[Array, "B T S"]:
    """True where query t may see key s."""
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    segments = keys.segment_ids[:, None, :]
    same = (queries.segment_ids[:, :, None] == segments) & (segments != 0)
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return same & near
