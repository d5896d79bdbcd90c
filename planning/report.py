"""A plan, printed and as JSON."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from planning.advice import advice, gib
from planning.estimate import Estimate, Times
from planning.program import Held
from sharding.collectives import Row

ROWS = 8
"""arrays, and kinds of exchange, that are shown"""
SMALL = 2**23
"""bytes below which an array is not"""


def printed(estimates: Sequence[Estimate], flags: dict[str, Any], title: str) -> str:
    """Everything, as plain text."""
    console = Console(file=io.StringIO(), width=140, highlight=False)
    facts = estimates[0].facts
    mesh = ", ".join(f"{axis} {size}" for axis, size in facts["mesh"].items() if size > 1) or "one device"
    console.print(f"{title}: {estimates[0].devices} x {facts['device_kind']}, {mesh}", style="bold")
    for each in estimates:
        console.print()
        for line in _of_program(each, flags):
            console.print(line if isinstance(line, Table) else escape(line), soft_wrap=not isinstance(line, Table))
    if len(estimates) > 1 and all(each.times for each in estimates):
        console.print(f"\n{_whole_step(estimates)}", soft_wrap=True)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _whole_step(estimates: Sequence[Estimate]) -> str:
    """Of all programs, the slowest first; what runs on the host is not known here."""
    spent = {each.facts["name"]: each.facts["times"] * each.times.total for each in estimates if each.times}
    parts = ", ".join(f"{name} {ms(spent[name])}" for name in sorted(spent, key=lambda name: -spent[name]))
    return f"a step of the run on the devices: {ms(sum(spent.values()))} at the most: {parts}"


def _of_program(estimate: Estimate, flags: dict[str, Any]) -> Iterator[str | Table]:
    facts = estimate.facts
    calls = f", {facts['times']:,.0f} times a step" if facts["times"] != 1 else ""
    yield f"{facts['name']}{calls}: {verdict(estimate)}"
    yield _memory_table(estimate)
    if estimate.times:
        yield from _time_lines(estimate, estimate.times)
        if estimate.rows:
            yield _exchange_table(estimate.rows)
    yield from (f"change: {line}" for line in advice(estimate, flags))


def verdict(estimate: Estimate) -> str:
    """Whether it fits, one line."""
    if estimate.fits:
        return (f"fits: {gib(estimate.need)} of {gib(estimate.limit)} on each chip "
                f"({100 * estimate.need / estimate.limit:.0f} %)")
    return (f"does not fit: {gib(estimate.need)} are needed of {gib(estimate.limit)} on each chip, "
            f"{gib(estimate.need - estimate.limit)} too much")


def _memory_table(estimate: Estimate) -> Table:
    table = Table("memory of a chip", "", "GiB", box=None)
    parts = (("arguments", estimate.facts["arguments"], estimate.facts["largest_arguments"][:4]),
             ("temporaries", estimate.memory.temporaries, estimate.memory.largest[:ROWS]),
             ("beside the program", estimate.facts["resident"], estimate.facts["largest_resident"][:4]))
    for name, size, arrays in parts:
        if size:
            table.add_row(name, "", f"{size / 2**30:,.2f}")
        for array in (Held(*each) for each in arrays if Held(*each).bytes >= SMALL):
            table.add_row(f"  {escape(array.name[-70:])}", escape(array.shape), f"{array.bytes / 2**30:,.2f}")
    return table


def _time_lines(estimate: Estimate, times: Times) -> Iterator[str]:
    how = "the compiler's cycles, loops as often as they run" if times.by_compiler else (
        "products and memory at the chip's figures; without --quick, the compiler's cycles")
    yield f"time: {ms(times.total)}" + _rate(estimate, times)
    yield f"  computing {ms(times.core)} ({how})"
    if times.kernels:
        yield (f"  attention {ms(times.kernels)} (its kernel declares no cost: by FLOPs, at "
               f"{100 * estimate.chip.kernel_share:.0f} % of the chip's peak)")
    if times.exchange:
        yield f"  exchange {ms(times.exchange)}, of which {ms(times.in_turn)} in turn with computing"
    flops = estimate.facts["flops"] / estimate.devices
    yield (f"  at the chip's figures: products {ms(times.products)} ({flops / 1e12:,.2f} TFLOP), attention "
           f"{ms(times.kernels)}, memory {ms(times.memory)}, exchange {ms(times.exchange)}: bound by {times.bound}")


def _rate(estimate: Estimate, times: Times) -> str:
    tokens = estimate.facts["tokens"]
    rate = f", {tokens / times.total:,.0f} tokens/s" if tokens else ""
    return rate + (f", MFU {100 * estimate.mfu:.1f} %" if estimate.mfu else "")


def _exchange_table(rows: Sequence[Row]) -> Table:
    table = Table("exchange", "axes", "dtype", "times", "MB sent", "where", box=None)
    for row in [each for each in rows if each.bytes][:ROWS]:
        table.add_row(row.kind, row.axes, row.dtype, f"{row.times:,}", f"{row.bytes / 1e6:,.1f}", escape(row.place))
    table.add_row("all", "", "", "", f"{sum(row.bytes for row in rows) / 1e6:,.1f}", "")
    return table


def tried_line(estimate: Estimate) -> str:
    """Of a choice that was compiled."""
    time = f", {ms(estimate.times.total)} by peak figures" if estimate.times else ""
    return f"{verdict(estimate)}{time}"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def as_json(estimate: Estimate, flags: dict[str, Any]) -> dict[str, Any]:
    """All figures of a program: bytes, seconds, FLOPs."""
    times, memory = estimate.times, estimate.memory
    facts = {name: value for name, value in estimate.facts.items() if name not in ("coords", "slices")}
    return facts | {
        "fits": estimate.fits, "bytes_needed": estimate.need, "bytes_limit": estimate.limit,
        "temporaries": memory.temporaries, "largest_temporaries": [each._asdict() for each in memory.largest[:ROWS]],
        "largest_arguments": [Held(*each)._asdict() for each in facts["largest_arguments"]],
        "largest_resident": [Held(*each)._asdict() for each in facts["largest_resident"]],
        "seconds": times and times.total, "times": times and times._asdict(), "bound": times and times.bound,
        "mfu": estimate.mfu, "chips": estimate.devices, "change": advice(estimate, flags),
        "exchange": [row._asdict() | {"largest": str(row.largest)} for row in estimate.rows],
        "seconds_compiling": estimate.seconds}
