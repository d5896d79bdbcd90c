"""Which micro-batches, remat and mesh to try, in which order: by figures of the model alone, before anything is
compiled; and which of them to compile, by what those before took."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from errors import InputError
from models.config import ModelConfig
from planning.chips import PODS, Chip, chip_named
from planning.estimate import Estimate
from training.least_exchange import RECOMPUTED
from training.throughput import flops_per_token

COMPILES = 8
"""of a search, at the most"""
FULL = 0.92
"""of a chip's memory, up to which what is foretold counts as fitting"""
CLOSE = 1.03
"""times the best time, up to which what is foretold is worth being compiled"""
ENOUGH = 3
"""that fit, after which nothing further is compiled that is not foretold to be faster"""
ROOM_IS_WORTH = 0.02
"""of the time, a chip's whole memory left free: of what is foretold to be alike, what needs less comes first"""
TENSOR = (1, 2, 4, 8)
AGAIN = {"none": 1.0, "dots": 1.04, "attention": 1.25, "full": 1.33}
"""times the FLOPs, by remat: what is computed again"""
SHARE = 0.5
"""of peak FLOP/s that a step reaches, about"""
SMALL = 2048
"""tokens of a device in a micro-batch at which its products take twice as long as they should, about"""


class Choice(NamedTuple):
    """What is tried."""

    num_microbatches: int
    remat: str
    mesh: tuple[tuple[str, int], ...]
    """size of each axis"""
    rules: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        mesh = " ".join(f"{axis} {size}" for axis, size in self.mesh if size > 1) or "one device"
        return ", ".join([mesh, f"{self.num_microbatches} micro-batch(es)", f"remat {self.remat}", *self.rules])


class Job(NamedTuple):
    """The step whose settings are looked for."""

    config: ModelConfig
    lora: Any
    optimizer: str
    rows: int
    """of a step, those of a pair apart"""
    length: int
    chips: int
    slices: int


class Foretold(NamedTuple):
    """By figures of the model alone."""

    choice: Choice
    bytes: float
    seconds: float


def choices(job: Job, group: int = 1) -> Iterator[Choice]:
    """All that divide: heads over tensor, rows over the rest and micro-batches."""
    chips = job.chips // job.slices
    for tensor in (size for size in TENSOR if chips % size == 0 and job.config.num_kv_heads % size == 0):
        for data in (size for size in range(1, chips // tensor + 1) if chips // tensor % size == 0):
            mesh = ("slice", job.slices), ("data", data), ("fsdp", chips // tensor // data), ("tensor", tensor)
            ways = job.slices * chips // tensor
            each = max(1, job.rows // (ways * group))
            for count in (2**power for power in range(each.bit_length()) if each % 2**power == 0):
                for remat in AGAIN:
                    for rules in ((), ("residual_length=tensor",))[: 1 if tensor == 1 else 2]:
                        yield Choice(count, remat, mesh, rules)


def foretell(job: Job, choice: Choice, chip: Chip) -> Foretold:
    """Bytes and seconds of a choice, roughly: what matters is their order."""
    config, mesh = job.config, dict(choice.mesh)
    ways = mesh["slice"] * mesh["data"] * mesh["fsdp"]
    tokens = max(job.rows * job.length / ways / choice.num_microbatches, job.length)
    flops = flops_per_token(config, job.length, job.lora) * tokens * choice.num_microbatches / mesh["tensor"]
    computing = flops * AGAIN[choice.remat] * (1 + SMALL * mesh["tensor"] / tokens) / (SHARE * chip.peak_flops)
    links, network = _exchange(job, choice, tokens)
    seconds = computing + (links / (2 * chip.link_speed) + network / chip.network_speed) / 2
    return Foretold(choice, _bytes(config, job, choice, tokens), seconds)


def _exchange(job: Job, choice: Choice, tokens: float) -> tuple[float, float]:
    """Bytes that a device sends over links, and between slices: training.least_exchange without its lesser terms."""
    config, mesh, count = job.config, dict(choice.mesh), choice.num_microbatches
    fsdp, tensor, copies = mesh["fsdp"], mesh["tensor"], mesh["slice"] * mesh["data"]
    piece = _weights(config) / tensor / fsdp
    trained = 0.0 if job.lora else piece
    split = count * (2 * 2 * piece + 4 * trained) * (fsdp - 1)
    summed = 2 * 4 * trained * (copies - 1) / copies
    sums = count * tokens * config.embed_dim * config.num_layers * (4 + RECOMPUTED[choice.remat]) * 2
    within = split + sums * 2 * (tensor - 1) / tensor
    return (within, summed) if mesh["slice"] > 1 else (within + summed, 0.0)


def _weights(config: ModelConfig) -> int:
    return config.num_layers * _layer(config) + config.vocab_size * config.embed_dim * (2 - config.tie_embeddings)


def _bytes(config: ModelConfig, job: Job, choice: Choice, tokens: float) -> float:
    """State and gradients of the trained, weights in the compute dtype, what layers keep, the head and its gradient."""
    fsdp, tensor = (dict(choice.mesh)[axis] for axis in ("fsdp", "tensor"))
    layer, weights = _layer(config), _weights(config)
    trained = 0 if job.lora else weights
    state = (weights * (2 if job.lora else 4) + trained * {"adamw": 12, "muon": 8}[job.optimizer]) / (fsdp * tensor)
    computed = (0 if job.lora else 2 * weights) / (fsdp * tensor) + 4 * layer / tensor
    kept = config.num_layers * tokens * _kept(config, choice)
    head = config.vocab_size * config.embed_dim * (2 if job.lora else 6) / tensor
    return state + computed + kept + head + 2**29


def _layer(config: ModelConfig) -> int:
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return config.embed_dim * (2 * heads + 2 * kv_heads + 3 * config.mlp_dim)


def _kept(config: ModelConfig, choice: Choice) -> float:
    """Bytes that a layer keeps of a token: the residual stream in float32, and what remat keeps besides."""
    tensor = dict(choice.mesh)["tensor"]
    stream = 4 * config.embed_dim / (tensor if choice.rules else 1)
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = 2 * (2 * heads + 2 * kv_heads) / tensor
    dots = attention + 2 * (2 * config.mlp_dim / tensor + config.embed_dim)
    more = {"full": 0.0, "attention": attention, "dots": dots,
            "none": dots + 2 * (3 * config.mlp_dim + 2 * heads) / tensor + 10 * config.embed_dim}
    return stream + more[choice.remat]


def search(candidates: Sequence[Foretold], limit: int, compile_one: Callable[[Choice], Estimate | None],
           compiles: int = COMPILES - 1) -> tuple[Choice | None, list[tuple[Choice, Estimate]]]:
    """(the fastest of the candidates that fits, None where none does; what was compiled): the most promising ones are;
    `compile_one` gives None for what the script refuses. What is foretold of memory is corrected by what was compiled.
    """
    tried: list[tuple[Choice, Estimate]] = []
    fitting: list[tuple[float, Foretold]] = []
    ratio, refused = 1.0, 0
    waiting = sorted(candidates, key=lambda each: each.seconds * (1 + ROOM_IS_WORTH * each.bytes / limit))
    while waiting and len(tried) + refused < compiles:
        chosen = _next(waiting, FULL * limit / ratio, fitting)
        if chosen is None:
            break
        waiting.remove(chosen)
        estimate = compile_one(chosen.choice)
        if estimate is None:
            refused += 1
            continue
        tried.append((chosen.choice, estimate))
        ratio = max(0.5, estimate.need / chosen.bytes) if not estimate.fits else ratio
        if estimate.fits and estimate.times:
            fitting.append((estimate.times.total, chosen))
    best = min(fitting, key=lambda each: each[0], default=None)
    return best and best[1].choice, tried


def _next(waiting: Sequence[Foretold], room: float, fitting: Sequence[tuple[float, Foretold]]) -> Foretold | None:
    """What to compile: the fastest that is foretold to fit, while it may be faster than what fits; without any, the
    smallest."""
    promising = next((each for each in waiting if each.bytes <= room), None)
    if not fitting:
        return promising or min(waiting, key=lambda each: each.bytes)
    fastest = min(each.seconds for _, each in fitting)
    if promising is None or len(fitting) >= ENOUGH or promising.seconds > CLOSE * fastest:
        return None
    return promising


def devices_in(topology: str, slices: int) -> int:
    """Of a topology's name: chips, and of TPU7x two a chip. Raises InputError where it is none."""
    chip_named(topology)
    name, _, sizes = topology.partition(":")
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", sizes):
        raise InputError(f"--topology {topology}: give a chip and its topology, such as v5p:2x2x2")
    each, (dimensions, largest) = [int(size) for size in sizes.split("x")], PODS[name]
    if len(each) != dimensions or math.prod(each) > largest:
        raise InputError(f"--topology {topology}: there is none; {name} has {dimensions} dimensions and up to "
                         f"{largest} chips, such as {name}:{'x'.join('2' * dimensions)}")
    return math.prod(each) * slices * (2 if name == "tpu7x" else 1)
