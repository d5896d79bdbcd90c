"""What to change about a planned program, by what it takes."""

from collections.abc import Iterator
from typing import Any

from planning.estimate import Estimate

ROOMY = 0.6
"""share of a chip's memory below which there is room for less recomputing, or for more rows"""
NEXT = {"full": "attention", "offload": "attention", "attention": "dots", "dots": "none"}
"""of --remat: what recomputes less and keeps more"""


def advice(estimate: Estimate, flags: dict[str, Any]) -> list[str]:
    """Lines, the most useful first; `flags` are the script's: remat, num_microbatches, lora."""
    if not estimate.fits:
        return list(_to_fit(estimate, flags))
    return list(_to_be_faster(estimate, flags)) if estimate.facts["model_flops"] else []


def _to_fit(estimate: Estimate, flags: dict[str, Any]) -> Iterator[str]:
    memory, mesh = estimate.memory, estimate.facts["mesh"]
    stays = estimate.facts["arguments"] + estimate.facts["resident"]
    if stays > 0.8 * estimate.limit:
        if mesh["data"] > 1:
            yield (f"weights and optimiser state take {gib(stays)}, a copy along data: --mesh.data 1 --mesh.fsdp "
                   f"{mesh['data'] * mesh['fsdp']} splits them")
        else:
            yield (f"weights and optimiser state take {gib(stays)} of each chip, split over all: a larger topology, "
                   f"--lora.rank, or a smaller model")
    if memory.temporaries > 0.2 * estimate.limit:
        if flags.get("remat") not in ("full", "offload"):
            yield f"--remat full keeps least of the forward pass (now {flags.get('remat')})"
        smaller = {"num_microbatches": lambda count: 2 * count, "microbatch_tokens": lambda count: count // 2}
        for name in smaller.keys() & flags.keys():
            yield f"--{name.replace('_', '-')} {smaller[name](flags[name])} halves what a part of the step keeps"
        if mesh["tensor"] > 1:
            yield "--mesh.rules residual_length=tensor splits what is kept of the residual stream"


def _to_be_faster(estimate: Estimate, flags: dict[str, Any]) -> Iterator[str]:
    times, share = estimate.times, estimate.need / estimate.limit
    recomputed = estimate.facts["flops"] + estimate.facts["kernel_flops"]
    remat, count = flags.get("remat"), flags.get("num_microbatches", 1)
    if times.bound == "exchange" and estimate.rows:
        row = estimate.rows[0]
        yield (f"most is exchanged by {row.kind} over {row.axes or 'all'} ({row.bytes / 1e9:,.2f} GB, {row.place}): "
               + _less_exchange(row.axes, row.place, count))
    if share < ROOMY and remat in NEXT and recomputed > 1.1 * estimate.facts["model_flops"] > 0:
        yield (f"{100 - 100 * share:.0f} % of the memory is free: --remat {NEXT[remat]} recomputes less than {remat}")
    if share < ROOMY and count > 1:
        yield f"--num-microbatches {count // 2}: larger parts gather weights less often, and there is memory"
    elif share < ROOMY and estimate.facts["tokens"]:
        yield "there is memory for more rows: a larger --batch-size makes better use of what is exchanged once a step"


def _less_exchange(axes: str, place: str, count: int) -> str:
    if "tensor" in axes:
        return "fewer ways of --mesh.tensor, more of --mesh.fsdp"
    if "slice" in axes:
        return "more rows a step between two exchanges over the network"
    if count > 1:
        return f"--num-microbatches {count // 2}, since each gathers all weights anew"
    return "more tokens a chip and step (--batch-size), or weights whole on each chip (--mesh.data) where they fit"


def gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"
