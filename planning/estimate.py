"""What a compiled program takes: memory and time of a call, and what the time is bound by."""

from typing import Any, NamedTuple

import jax

from planning.chips import Chip, chip_of, group_speed
from planning.compiling import Compiled
from planning.memory import Memory, of_error, read_memory
from planning.traffic import work
from sharding.collectives import Collective, Row, collectives, tally
from sharding.layout import AXES

PRODUCTS_SHARE = 0.85
"""of peak FLOP/s, that large products of matrices reach where the compiler's cycles are not known"""


class Times(NamedTuple):
    """Seconds of a call on a device."""

    core: float
    """by the compiler's cycles, loops as often as they run; without machine code, by products and memory alone"""
    kernels: float
    """attention's kernels, by their FLOPs, for the compiler declares none"""
    exchange: float
    """by bytes and links"""
    in_turn: float
    """of the exchange, what nothing can hide: collectives that computation does not overlap"""
    products: float
    """what matrix products would take at the chip's peak"""
    memory: float
    """what reading and writing memory would take at its full speed"""
    by_compiler: bool

    @property
    def total(self) -> float:
        """Computation, and the exchange that is not hidden behind it."""
        hidden = self.exchange - self.in_turn
        return max(self.core + self.kernels, hidden) + self.in_turn

    @property
    def bound(self) -> str:
        """What would have to be less: compute, memory or exchange."""
        spent = {"compute": self.products + self.kernels, "memory": self.memory, "exchange": self.exchange}
        return max(spent, key=lambda name: spent[name])


class Estimate(NamedTuple):
    """Of a program."""

    facts: dict[str, Any]
    chip: Chip
    memory: Memory
    times: Times | None
    """None of what does not fit"""
    rows: list[Row]
    """what is exchanged, by kind and place"""
    seconds: float
    """that compiling took"""

    @property
    def need(self) -> int:
        """Bytes of a device, with what else is on it; arguments that the program does not use are there, too."""
        return max(self.memory.arguments, self.facts["arguments"]) + self.memory.temporaries + self.facts["resident"]

    @property
    def limit(self) -> int:
        """Bytes that a device has for programs."""
        return self.memory.limit or self.chip.memory

    @property
    def fits(self) -> bool:
        return self.need <= self.limit and self.memory.limit is None

    @property
    def devices(self) -> int:
        return len(self.facts["coords"])

    @property
    def mfu(self) -> float | None:
        """Of a call, by the model's FLOPs as training.throughput counts them."""
        if self.times is None or not self.facts["model_flops"]:
            return None
        return self.facts["model_flops"] / (self.times.total * self.chip.peak_flops * self.devices)


def estimate(compiled: Compiled) -> Estimate:
    """Of what a compiler has written."""
    facts = compiled.facts
    chip = chip_of(facts["device_kind"])
    refused = of_error(compiled.error) if compiled.error else None
    if compiled.error and refused is None:
        raise RuntimeError(compiled.error)
    if refused and not compiled.text:
        return Estimate(facts, chip, refused, None, [], compiled.seconds)
    mesh = jax.sharding.AbstractMesh(tuple(facts["mesh"][axis] for axis in AXES), AXES)
    found = collectives(compiled.text, mesh)
    memory = read_memory(compiled.buffers, compiled.live_ranges, compiled.text)
    if refused:  # what was written before it was refused may lack what is on the chip besides
        least = max(memory.temporaries, refused.total - memory.arguments)
        memory = memory._replace(limit=refused.limit, temporaries=least)
    return Estimate(facts, chip, memory, _times(compiled, chip, found), tally(found), compiled.seconds)


def _times(compiled: Compiled, chip: Chip, found: list[Collective]) -> Times:
    done, facts = work(compiled.text), compiled.facts
    devices = len(facts["coords"])
    products, kernels = (facts[name] / devices / chip.peak_flops for name in ("flops", "kernel_flops"))
    memory = done.bytes / chip.memory_speed
    by_compiler = compiled.optimal_seconds is not None
    core = done.cycles / chip.clock if by_compiler else (
        products / PRODUCTS_SHARE + done.bytes_beside_products / chip.memory_speed)
    seconds = [(each, each.total / _speed(chip, each, facts)) for each in found]
    in_turn = sum(spent for each, spent in seconds if not each.overlaps)
    return Times(core, kernels / chip.kernel_share, sum(spent for _, spent in seconds), in_turn, products, memory,
                 by_compiler)


def _speed(chip: Chip, collective: Collective, facts: dict[str, Any]) -> float:
    if not collective.axes:
        return chip.memory_speed
    return group_speed(chip, collective.axes, facts["mesh"], (facts["coords"], facts["slices"]))
