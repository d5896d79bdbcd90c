"""What the event loop gives the engine's thread to do, and what it is told of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from rollouts.engine import Output


class SampleRequest(NamedTuple):
    """One completion, in what JSON has, so that every process makes the same request of it."""

    tokens: list[int]
    max_new_tokens: int
    key: list[int]
    controls: list[float]
    """of rollouts.sampling.Controls, in order"""
    stop: list[str]
    stop_ids: list[int]
    """end tokens besides the tokenizer's"""
    ignore_eos: bool
    """the tokenizer's end none"""
    logit_bias: list[tuple[int, float]]
    num_likeliest: int
    grammar: str | None


class ScoreRequest(NamedTuple):
    """A row that is to be scored, in what JSON has."""

    tokens: list[int]
    likeliest: bool
    """the likeliest tokens are wanted, too"""


class Accepted(NamedTuple):
    """All that a job asks for is on its way."""


class Sampled(NamedTuple):
    """What came for sample number `number` of a job."""

    number: int
    output: Output


class Scored(NamedTuple):
    """The scores of row number `number` of a job."""

    number: int
    scores: Any


Event = Accepted | Sampled | Scored | Exception
"""what a job is told; after an exception, nothing more"""
Callback = Callable[[list[Event]], None]
