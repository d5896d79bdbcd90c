"""What a TPU's compiled program does by its text: cycles of its instructions, bytes that they move between memory and
core, both as often as loops run them.

The compiler writes its estimate of an instruction's cycles beside it (`estimated_cycles` in its backend_config), once
there is machine code: compute and memory, none for collectives, kernels (custom-call) and asynchronous copies. A loop
counts as often as it runs, one whose rounds the program does not say once.
"""

import math
import re
from typing import NamedTuple

from sharding.hlo import Computation, Instruction, Place, Program, arrays, elements, parse, root

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
NONE = 2**62
"""cycles from which on the compiler says that it does not know"""
MOVES_NOTHING = ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "constant",
                 "after-all", "partition-id", "iota", "call-start", "call-done", "async-start", "async-done",
                 "async-update", "copy-done", "all-gather-done", "all-reduce-done", "collective-permute-done",
                 "custom-call-done", "send", "send-done", "recv", "recv-done", "opt-barrier")
IN_CORE = re.compile(r"[a-z]\w*\[[\d,<=]*\]\{[^{}]*S\([1-9]\d*\)[^{}]*\}")
"""an array in the core's own memory"""


class Work(NamedTuple):
    """Of a device, in one call."""

    cycles: float
    """0 before there is machine code"""
    bytes: float
    """read from memory and written to it"""
    bytes_beside_products: float
    """of these, those of instructions that multiply no matrices: the rest hides behind the matrix units"""
    cycles_by_place: dict[str, float]
    """loops, by name -> cycles of what is in them"""


def work(text: str) -> Work:
    """Of an optimised text."""
    program = parse(text)
    cycles = moved = beside = 0.0
    by_place: dict[str, float] = {}
    for place in program.places():
        if place.fused or place.instruction.opcode.startswith("fused"):
            continue
        times = math.prod(loop.trips or 1 for loop in place.loops)
        spent = _cycles(place.instruction) * times
        size = _bytes(place, program) * times
        cycles, moved = cycles + spent, moved + size
        beside += 0 if _multiplies(place.instruction, program) else size
        where = " > ".join(f"{loop.name} x{loop.trips or '?'}" for loop in place.loops) or "outside"
        by_place[where] = by_place.get(where, 0.0) + spent
    return Work(cycles, moved, beside, by_place)


def _cycles(instruction: Instruction) -> int:
    found = CYCLES.search(instruction.attributes)
    cycles = int(found[1]) if found else 0
    return cycles if cycles < NONE else 0


def _multiplies(instruction: Instruction, program: Program) -> bool:
    inside = program.computations[instruction.called[0]].values() if instruction.opcode == "fusion" else [instruction]
    return any(each.opcode in ("convolution", "dot") for each in inside)


def _bytes(place: Place, program: Program) -> int:
    """Between memory and core: operands and results, of what a fusion only takes a slice of, the slice."""
    instruction, computation = place.instruction, place.computation
    if instruction.opcode in MOVES_NOTHING or 'custom_call_target="AllocateBuffer"' in instruction.attributes:
        return 0
    if instruction.opcode == "copy-start":
        return sum(map(_in_memory, elements(instruction.type)[:2]))
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _in_memory(instruction.type)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_memory(computation[instruction.operands[1]].type)
    inside = instruction.called[0] if instruction.opcode == "fusion" else None
    read = sum(_read(program, inside, number, computation[name]) for number, name in enumerate(instruction.operands)
               if name in computation)
    return read + _written(program, inside, instruction)


def _in_memory(kind: str) -> int:
    """Bytes of a type's arrays that are not in the core's own memory."""
    return sum(array.bytes for array in arrays(IN_CORE.sub("", kind)))


def _read(program: Program, inside: str | None, number: int, operand: Instruction) -> int:
    """What a fusion reads of its operand of this number."""
    whole = _in_memory(operand.type)
    taken = _taken(program, inside, number) if whole and inside else None
    return whole if taken is None else min(whole, taken)


def _taken(program: Program, inside: str, number: int) -> int | None:
    """Bytes of the slices that alone are taken of a fusion's operand; None where it is used whole."""
    computation = program.computations[inside]
    name = next((each.name for each in computation.values()
                 if each.opcode == "parameter" and each.arguments == str(number)), None)
    return name and _of_users(program, computation, name)


def _of_users(program: Program, computation: Computation, name: str) -> int | None:
    sizes = [_of_user(program, computation, user, name) for user in computation.values() if name in user.operands]
    return None if None in sizes else sum(sizes)


def _of_user(program: Program, computation: Computation, user: Instruction, name: str) -> int | None:
    if user.opcode in ("bitcast", "reshape"):
        return _of_users(program, computation, user.name)
    if user.opcode in ("dynamic-slice", "slice", "gather"):
        return _size(user.type)
    if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        return 0
    if user.opcode == "fusion":
        return _taken(program, user.called[0], user.operands.index(name))
    return 0 if user.opcode == "tuple" else None


def _written(program: Program, inside: str | None, instruction: Instruction) -> int:
    """What an instruction writes: of an array that a fusion updates a slice of, the slice."""
    if inside is None:
        return _in_memory(instruction.type)
    computation = program.computations[inside]
    result = root(computation)
    kinds = elements(instruction.type) if result.opcode == "tuple" else [instruction.type]
    names = result.operands if result.opcode == "tuple" else [result.name]
    return sum(_updated(program, computation, computation[name], kind) if _in_memory(kind) else 0
               for name, kind in zip(names, kinds, strict=True))


def _updated(program: Program, computation: Computation, result: Instruction, kind: str) -> int:
    if result.opcode in ("bitcast", "reshape", "copy") and result.operands[0] in computation:
        return _updated(program, computation, computation[result.operands[0]], kind)
    if result.opcode == "fusion" and not result.type.startswith("("):
        inner = program.computations[result.called[0]]
        return _updated(program, inner, root(inner), kind)
    update = result.opcode == "dynamic-update-slice"
    return _size(computation[result.operands[1]].type) if update else _in_memory(kind)


def _size(kind: str) -> int:
    return sum(array.bytes for array in arrays(kind))


