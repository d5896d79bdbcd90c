"""What a compiled program exchanges between devices: every collective, its bytes, its mesh axes and the loops it is in.

Read from `compiled.as_text()` of XLA for CPUs, GPUs and TPUs. Bytes are those that one device sends where the n of a
group form a ring (Thakur et al. 2005, doi:10.1177/1094342005051521), the least that large arrays need:

    all-gather        result (n - 1) / n          reduce-scatter, all-to-all            operand (n - 1) / n
    all-reduce        2 operand (n - 1) / n       collective-permute, -broadcast        operand

Between slices of TPUs, what a program does is a `send` to the host of what is exchanged there, and a `recv`.
"""

import collections
import math
import re
from typing import Any, NamedTuple

import numpy as np

from sharding.hlo import Array, Instruction, Loop, Place, arrays, elements, parse

SHARES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "all-to-all": 1, "ragged-all-to-all": 1}
"""kinds of which a device sends so many times (n - 1) / n of the whole array"""
KINDS = (*SHARES, "collective-permute", "collective-broadcast")
GROUPED = re.compile(r"\b(?:replica_groups|source_target_pairs)=|_xla_megascale_t")
"""what a collective has, whatever its name"""
BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str
    """one of KINDS"""
    operands: tuple[Array, ...]
    """what a device gives; several where XLA has combined them"""
    results: tuple[Array, ...]
    """what it gets"""
    group_size: int
    axes: tuple[str, ...]
    """mesh axes that a group runs over, or over a part of; none without a mesh"""
    loops: tuple[Loop, ...]
    """that it is in, the outermost first"""
    op_name: str
    """where in the traced program it comes from"""
    bytes: int
    """that a device sends each time"""
    overlaps: bool = False
    """other instructions run between its start and its end"""

    @property
    def times(self) -> int:
        """How often it runs; a loop that does not say how often counts once."""
        return math.prod(loop.trips or 1 for loop in self.loops)

    @property
    def total(self) -> int:
        """Bytes that a device sends in all."""
        return self.bytes * self.times

    @property
    def dtype(self) -> str:
        return "+".join(sorted({each.dtype for each in self.operands}))

    @property
    def place(self) -> str:
        """The loops, by the last parts of their names and how often they run."""
        return " > ".join(f"{short_name(loop.name)} x{loop.trips or '?'}" for loop in self.loops) or "outside"


def short_name(op_name: str) -> str:
    """Of an operation or a loop: what comes after the last loop around it, without what JAX wraps around everything."""
    inner = re.sub(r"^jit\(\w+\)/", "", op_name).split("/body/")[-1]
    return re.sub(r"\b(?:eval_jaxpr|closed_call|checkpoint|rematted_computation)/", "", inner)


def collectives(text: str, mesh: Any = None) -> list[Collective]:
    """Every collective of a compiled program in the order of its text, by the axes of `mesh` where that is given.

    Raises ValueError for what exchanges arrays in a way that is not known here, so that nothing is left out in silence.
    """
    program, chains, found = parse(text), set(), []
    for place in program.places():
        kind, chain = _kind(place), _chain(place)
        if kind and chain not in chains:
            found.append(_collective(place, kind, program.num_partitions, mesh))
        chains.update({chain} - {None})
    return found


def _chain(place: Place) -> tuple[str, ...] | None:
    """What names a TPU's collective that overlaps computation: its begin, steps and end are fusions, which all have the
    instruction."""
    found = re.search(r"\bchannel_id=(\d+).*\bchain_id=\"(\d+)\"", place.instruction.attributes)
    return found and (*found.groups(), *(loop.name for loop in place.loops))


def _kind(place: Place) -> str | None:
    """One of KINDS; None of what is no collective, or only awaits one (-done)."""
    instruction = place.instruction
    kind = instruction.opcode.removesuffix("-start")
    if kind == "send" and (found := BETWEEN_SLICES.search(instruction.attributes)):
        kind = {"ONE_TO_ONE": "collective-permute"}.get(found[1], found[1].lower().replace("_", "-"))
    if kind in KINDS:
        return "reduce-scatter" if kind == "all-reduce" and _kept_slices(place) else kind
    if instruction.opcode.endswith(("-done", "-update")) or kind == "recv" and _is_to_host(instruction):
        return None
    if GROUPED.search(instruction.attributes) or kind in ("send", "recv") and not _is_to_host(instruction):
        raise ValueError(f"{instruction.name}: {instruction.opcode} exchanges arrays in a way that "
                         f"sharding/collectives.py does not know ({', '.join(KINDS)}); add it there")
    return None


def _is_to_host(instruction: Instruction) -> bool:
    return "is_host_transfer=true" in instruction.attributes


def _kept_slices(place: Place) -> list[Instruction]:
    """A TPU's reduce-scatter may be a fusion of an all-reduce and the slice that each device keeps: those slices."""
    users = [each for each in place.computation.values() if place.instruction.name in each.operands]
    return users if place.fused and all(each.opcode == "dynamic-slice" for each in users) else []


def _collective(place: Place, kind: str, num_partitions: int, mesh: Any) -> Collective:
    instruction = place.instruction
    alone = kind == "ragged-all-to-all" or instruction.opcode == "send"  # the rest are sizes and tokens
    names = instruction.operands[:1] if alone else instruction.operands
    operands = tuple(each for name in names for each in arrays(place.computation[name].type))
    groups = groups_of(instruction, num_partitions)
    return Collective(kind, operands, _results(place), groups.shape[1], axes_of(groups, mesh), place.loops,
                      instruction.op_name, _bytes(kind, operands, groups), _overlaps(place))


def _overlaps(place: Place) -> bool:
    return place.instruction.opcode.endswith("-start") or place.instruction.opcode == "send" or bool(_chain(place))


def _results(place: Place) -> tuple[Array, ...]:
    kind, slices = place.instruction.type, _kept_slices(place)
    if place.instruction.opcode in ("all-gather-start", "collective-permute-start"):
        kind = elements(kind)[1]  # of (operands, results, ...)
    if place.instruction.opcode == "send":
        kind = elements(_received(place).type)[0]
    return tuple(array for each in [slice.type for slice in slices] or [kind] for array in arrays(each))


def _received(sent: Place) -> Instruction:
    """The `recv` of what comes back from other slices."""
    name = re.search(r'_xla_host_transfer_rendezvous="[^"]*"', sent.instruction.attributes)[0]
    return next(each for each in sent.computation.values() if each.opcode == "recv" and name in each.attributes)


def _bytes(kind: str, operands: tuple[Array, ...], groups: np.ndarray) -> int:
    given, size = sum(each.bytes for each in operands), groups.shape[1]
    if kind not in SHARES:
        return given if (groups[:, 0] != groups[:, -1]).any() else 0  # none where each keeps its own
    return SHARES[kind] * (given * size if kind == "all-gather" else given) * (size - 1) // size


def groups_of(instruction: Instruction, num_partitions: int) -> np.ndarray:
    """Devices of each group, [groups, n], by their number in the mesh; of a permute, [pairs, (source, target)].

    They are listed, counted off from a reshaped and transposed range ([2,4]<=[4,2]T(1,0)), or named by axes of a mesh
    of the compiler's own. Between slices, of which a text has the program of one, they are devices of the same number
    in each, the mesh's slowest axis. Raises ValueError for any other notation.
    """
    text = instruction.attributes
    if found := re.search(r"_xla_megascale_target=\"?\{\{?([\d,:>-]+)\}", text):
        count = sum(_length(each) for each in re.split(",|->", found[1]))
        return np.arange(count * num_partitions).reshape(count, -1).T
    if found := re.search(r"\b(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}", text):
        listed = [_numbers(each) for each in re.findall(r"\{([\d,]+)\}", found[1])]
        return np.asarray(listed or [range(num_partitions)])
    if found := re.search(r"\breplica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _counted_off(found[1])
    if found := re.search(r"\breplica_groups=mesh\[(.*?)\](?:, ?device_ids=\((.*?\]?)\))? ?\{(.*?)\}", text):
        return _along_axes(*found.groups())
    raise ValueError(f"{instruction.name}: {instruction.opcode} names its groups in a way that sharding/collectives.py "
                     f"does not know: {text[:200]}")


def _length(text: str) -> int:
    """Of "3", one, or "1:4", four."""
    first, _, last = text.partition(":")
    return int(last or first) - int(first) + 1


def _counted_off(text: str) -> np.ndarray:
    shape, reshaped, order = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    devices = np.arange(math.prod(_numbers(reshaped))).reshape(_numbers(reshaped))
    return devices.transpose(_numbers(order) if order else range(devices.ndim)).reshape(_numbers(shape))


def _along_axes(sizes: str, device_ids: str | None, axes: str) -> np.ndarray:
    """Groups along `'a','b':(2)4` of a mesh `'a'=2,'b'=8`; (2)4 are the 4 parts of each of b's 2 halves."""
    shape = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    strides = dict(zip(shape, np.cumprod([1, *list(shape.values())[:0:-1]])[::-1], strict=True))
    numbers = np.arange(math.prod(shape.values()))
    first, rank, count = numbers, 0 * numbers, 1
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        size = int(part or shape[name])
        stride = strides[name] * (shape[name] // (int(before or 1) * size))
        index = numbers // stride % size
        first, rank, count = first - index * stride, rank * size + index, count * size
    return _device_ids(device_ids, numbers)[np.lexsort((rank, first))].reshape(-1, count)


def _device_ids(text: str | None, numbers: np.ndarray) -> np.ndarray:
    if text is None:
        return numbers
    return _counted_off(text).ravel() if "<=" in text else np.asarray([int(each) for each in re.findall(r"\d+", text)])


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def axes_of(groups: np.ndarray, mesh: Any) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    if mesh is None:
        return ()
    indices = np.stack(np.unravel_index(groups, tuple(mesh.shape.values())))  # [axes, groups, n]
    differ = (indices != indices[:, :, :1]).any(axis=(1, 2))
    return tuple(name for name, each in zip(mesh.shape, differ, strict=True) if each)


class Row(NamedTuple):
    """The collectives of one place, kind, group and dtype."""

    place: str
    kind: str
    axes: str
    dtype: str
    times: int
    bytes: int
    """that a device sends in all"""
    largest: Array
    """of what one of them takes or gives"""


def tally(found: list[Collective]) -> list[Row]:
    """What is exchanged by place, kind, mesh axes and dtype, the most first."""
    groups = collections.defaultdict(list)
    for each in found:
        groups[each.place, each.kind, "+".join(each.axes), each.dtype].append(each)
    rows = [Row(*key, sum(each.times for each in group), sum(each.total for each in group),
                max((array for each in group for array in each.operands + each.results), key=lambda array: array.bytes))
            for key, group in groups.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def exchange_table(rows: list[Row], title: str = "", least: int = 0) -> Any:
    """A rich table of rows of at least `least` bytes, and the sum of all."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("place", "kind", "axes", "dtype", "times", "MB sent", "largest array", title=title)
    for *names, times, total, largest in (row for row in rows if row.bytes >= least):
        table.add_row(*names, str(times), f"{total / 1e6:,.3f}", escape(str(largest)))
    table.add_section()
    times, total = (sum(getattr(row, name) for row in rows) for name in ("times", "bytes"))
    table.add_row("all", "", "", "", str(times), f"{total / 1e6:,.3f}")
    return table
