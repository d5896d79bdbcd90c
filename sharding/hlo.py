"""The text of a compiled program (`compiled.as_text()`, optimised HLO), read into instructions and where they run.

A program is a set of computations, which are lists of instructions; an instruction may call others: a loop its body, a
fusion what it fuses. What is in a loop of n rounds runs n times, in a loop of m rounds within it n m times.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+(?:[a-z]\w*)?)\[([\d,<=]*)\]")
"""an array's type, such as f32[8,1024]"""
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (?=\(|[a-z]\w*\[)")
CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)|"
                    r"\b(?:called_computations|branch_computations)=\{([^}]*)\}")
TRIP_COUNT = re.compile(r'known_trip_count\\?"?:\s*\{\\?"n\\?":\s*\\?"(\d+)')
MOVES = ("copy", "copy-start", "copy-done", "bitcast", "reshape", "convert")
"""instructions that give a number on as it is"""


class Array(NamedTuple):
    """An array's type."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = 8 if self.dtype == "pred" else int(re.search(r"\d+", self.dtype)[0])
        return math.prod(self.shape) * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Instruction(NamedTuple):
    """One line: `name = type opcode(arguments), attributes`."""

    name: str
    type: str
    opcode: str
    arguments: str
    """operands; a constant's value, a parameter's number"""
    attributes: str
    is_root: bool
    """its result is the computation's"""

    @property
    def operands(self) -> list[str]:
        """Names of instructions of the same computation."""
        return re.findall(r"%([\w.\-#]+)", self.arguments)  # a.1#2 (xla_dump_compact_gte) is found nowhere

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """The computations that it calls."""
        names = [one or several for one, several in CALLED.findall(self.attributes)]
        return [name.strip(" %") for each in names for name in each.split(",")]


Computation = dict[str, Instruction]
"""the instructions by name, in the order of the text"""


class Loop(NamedTuple):
    """A loop that an instruction is in."""

    name: str
    """the op_name of its `while`"""
    trips: int | None
    """how often it runs; None where the program does not say"""


class Place(NamedTuple):
    """An instruction, where it stands, and which loops it is in, the outermost first."""

    instruction: Instruction
    computation: Computation
    loops: tuple[Loop, ...]
    fused: bool
    """one kernel with the rest of its computation"""


class Program(NamedTuple):
    """A compiled program's computations by name."""

    computations: dict[str, Computation]
    entry: str
    """the computation that is run"""
    num_partitions: int
    """devices"""

    def places(self) -> Iterator[Place]:
        """Every instruction that runs, in each place where it does."""
        yield from self._within(self.entry, (), False)

    def _within(self, name: str, loops: tuple[Loop, ...], fused: bool) -> Iterator[Place]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield Place(instruction, computation, loops, fused)
            if instruction.opcode.endswith(("-update", "-done")):
                continue  # it runs where it was started
            inside = (*loops, self._loop(instruction, computation)) if instruction.opcode == "while" else loops
            for called in instruction.called:
                yield from self._within(called, inside, fused or instruction.opcode == "fusion")

    def root_of(self, instruction: Instruction) -> Instruction:
        """What gives a fusion its result; any other instruction itself."""
        return root(self.computations[instruction.called[0]]) if instruction.opcode == "fusion" else instruction

    def _loop(self, loop: Instruction, outer: Computation) -> Loop:
        known = TRIP_COUNT.search(loop.attributes)
        return Loop(loop.op_name, int(known[1]) if known else self._trips(loop, outer))

    def _trips(self, loop: Instruction, outer: Computation) -> int | None:
        """Of a loop that counts up while below a constant, from 0 by 1 where it does not say otherwise."""
        condition, body = (self.computations[re.search(rf"\b{which}=%?([\w.\-]+)", loop.attributes)[1]]
                           for which in ("condition", "body"))
        test = root(condition)
        counter, limit = (source(condition, name) for name in (*test.operands, *test.operands)[:2])
        if "direction=LT" not in test.attributes or limit.opcode != "constant" or "index=" not in counter.attributes:
            return None
        index = int(re.search(r"index=(\d+)", counter.attributes)[1])
        start = constant(outer, source(outer, loop.operands[0]).operands[index]) or 0
        return -(-(int(limit.arguments) - start) // self._step(body, index))

    def _step(self, body: Computation, index: int) -> int:
        """What a round adds to a loop's counter."""
        following = source(body, root(body).operands[index])
        if following.opcode == "fusion":
            body, following = self.computations[following.called[0]], self.root_of(following)
        return next((number for name in following.operands if (number := constant(body, name))), 1)


def root(computation: Computation) -> Instruction:
    """What a computation gives."""
    return next(each for each in computation.values() if each.is_root)


def source(computation: Computation, name: str) -> Instruction:
    """What a number is a copy of."""
    instruction = computation[name]
    return source(computation, instruction.operands[0]) if instruction.opcode in MOVES else instruction


def constant(computation: Computation, name: str) -> int | None:
    """A whole number that the program holds; None of what it computes."""
    number = source(computation, name)
    return int(number.arguments) if number.opcode == "constant" and number.arguments.lstrip("-").isdigit() else None


@functools.lru_cache(maxsize=4)
def parse(text: str) -> Program:
    """The program of an optimised HLO text. Raises ValueError where there is none."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (start := INSTRUCTION.match(line)):
            current[start[2]] = _instruction(start, line)
    if not entry:
        raise ValueError("no ENTRY computation: this is no text of a compiled program")
    partitions = re.match(r"HloModule.*\bnum_partitions=(\d+)", text)
    return Program(computations, entry, int(partitions[1]) if partitions else 1)


def _instruction(start: re.Match[str], line: str) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", line[start.end():])
    end = _closing(rest) if rest[0] == "(" else rest.index(" ")
    opcode, _, _ = rest[end + 1:].partition("(")
    opened = end + 1 + len(opcode)
    closed = opened + _closing(rest[opened:])
    return Instruction(start[2], rest[:end], opcode, rest[opened + 1 : closed - 1], rest[closed:], bool(start[1]))


def _closing(text: str) -> int:
    """One past the parenthesis that closes the first one."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


def arrays(kind: str) -> list[Array]:
    """The arrays of a type, those of a tuple one after the other."""
    return [Array(dtype, tuple(int(size.strip("<=")) for size in sizes.split(",") if size))
            for dtype, sizes in ARRAY.findall(kind)]


def elements(kind: str) -> list[str]:
    """The types that a tuple's type holds."""
    depth, parts = 0, [""]
    for character in kind[1:-1]:
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


NOTHING_MADE = ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "dynamic-update-slice")
"""instructions whose result is there already"""


def made_arrays(text: str) -> list[tuple[Array, tuple[Loop, ...]]]:
    """The arrays that a program makes in memory, and the loops that each is made in. What is fused is not in memory,
    and what a loop writes a part of is not of its making."""
    program = parse(text)
    return [(array, place.loops) for place in program.places() if not place.fused
            and not {place.instruction.opcode, program.root_of(place.instruction).opcode} & {*NOTHING_MADE}
            for array in arrays(place.instruction.type)]
