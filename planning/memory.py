"""What a compiled program takes of a device's memory, from what XLA writes beside its text (xla_dump_to): the
assignment of buffers, and what is alive where the most is; or from the error of one that does not fit."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from planning.program import Held
from sharding.collectives import short_name
from sharding.hlo import Instruction, arrays, elements, parse

TEMPORARY = re.compile(r"\bsize (\d+)(?:, color 0)?, page \d+, preallocated-temp")
ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(?:, color (\d+))?, page \d+, (.*)$", re.MULTILINE)
ALIVE = re.compile(r"^\s+([\w.\-]+)\{([\d,]*)\}: (\d+) bytes")
USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
LARGEST = re.compile(r"Size: ([\d.]+)([KMGT]?)\s+(?:Operator: op_name=\"([^\"]*)\"[^\n]*\s+)?Shape: ([^{\s]+)")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Memory(NamedTuple):
    """Bytes of a device."""

    arguments: int
    """and what of the results does not take their place"""
    temporaries: int
    largest: list[Held]
    """temporaries that are alive where the most is"""
    limit: int | None = None
    """what the compiler has, where it says that the program does not fit"""

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries


def read_memory(buffers: str, live_ranges: str, text: str) -> Memory:
    """Of the texts of buffer-assignment, live-range and the optimised program."""
    temporaries = sum(map(int, TEMPORARY.findall(buffers)))
    others = sum(int(size) for size, color, kind in ALLOCATION.findall(buffers)
                 if color in ("", "0") and re.match(r"parameter|maybe-live-out|output", kind))
    return Memory(others, temporaries, list(_alive(live_ranges, text)))


def _alive(live_ranges: str, text: str) -> Iterator[Held]:
    """Arrays at the peak, but for arguments, the largest first."""
    instructions = {name: each for computation in parse(text).computations.values()
                    for name, each in computation.items()}
    for line in _at_peak(live_ranges):
        if (found := ALIVE.match(line)) and found[1] in instructions:
            instruction, size = instructions[found[1]], int(found[3])
            if instruction.opcode != "parameter" and size:
                yield Held(short_name(instruction.op_name) or instruction.name, _shape(instruction, found[2]), size)


def _at_peak(live_ranges: str) -> list[str]:
    _, _, after = live_ranges.partition("(peak):\n")
    return after.partition("Stack trace")[0].splitlines()


def _shape(instruction: Instruction, index: str) -> str:
    kind = instruction.type
    for number in (int(each) for each in index.split(",") if each):
        kind = elements(kind)[number]
    return ", ".join(map(str, arrays(kind)))


def of_error(message: str) -> Memory | None:
    """Of the error of a program that does not fit; None of any other."""
    found = USED.search(message)
    if not found:
        return None
    used, limit = (int(float(found[at]) * UNITS[found[at + 1]]) for at in (1, 3))
    largest = [Held(short_name(name) or "?", shape, int(float(size) * UNITS[unit]))
               for size, unit, name, shape in LARGEST.findall(message)]
    return Memory(0, used, largest, limit)
