"""Tokens a second of the engine on one device, and the share of the memory's bandwidth that decoding reaches.

Decoding a token reads all weights once and what the cache has of each context. Calls of the engine that decode alone
are timed, behind the first that reads the prompts, so that the share is of decoding.
"""

import functools
import statistics
import time

import jax
import numpy as np

from checks.hardware import rated
from checks.machine import Machine
from checks.sizes import shown_size, sized, sizes
from checks.verdicts import Check, Finding
from models.architecture import random_params
from models.transformer import Transformer
from rollouts.decoder import CHUNK
from rollouts.engine import Engine, Request
from rollouts.layout import weight_shapes
from rollouts.memory import bytes_of_device
from sharding.mesh import make_layout
from sharding.settings import MeshConfig
from training.compiling import compile_seconds

PART = "decoding speed"
PROMPT, CALLS = 256, 4
"""tokens of a prompt; calls that are timed, of CHUNK tokens for every slot"""


def checks(machine: Machine) -> list[Check]:
    return [Check(PART, f"decode {shown_size(preset, machine)}", functools.partial(measure, machine, preset))
            for preset in sizes(machine)]


def measure(machine: Machine, preset: str) -> Finding:
    config, slots = sized(preset, machine), 8 if machine.quick else 32
    layout = make_layout(MeshConfig(), jax.devices()[:1])
    engine = Engine(Transformer(config, layout=layout), num_slots=slots)
    before = compile_seconds()
    engine.load({"params": random_params(config, jax.random.key(0), layout)})
    for run in range(2):  # the first one compiles
        seconds, contexts, finite = decode(engine, config.vocab_size, slots, run)
    compiled = compile_seconds() - before
    weights = bytes_of_device(weight_shapes(engine.model))
    position = 2 * config.num_layers * config.num_kv_heads * config.head_dim * np.dtype("bfloat16").itemsize
    moved = weights + position * slots * contexts
    found = rated("GB/s", moved * CHUNK / seconds / 1e9, machine.bandwidth and machine.bandwidth / 1e9)
    speed = slots * CHUNK / seconds
    figures = {"tokens_per_second": speed, "memory_gib": (weights + engine.cache_bytes) / 2**30,
               "compile_seconds": compiled, "bandwidth_gb_per_second": found.figures["GB/s"],
               "bandwidth_share": found.figures["share"]}
    share = found.note.split(";")[0] if machine.bandwidth is None else found.note
    note = (f"{speed:,.0f} tokens/s, {slots} at a time; {share}; {figures['memory_gib']:.2f} GiB, compiled in "
            f"{compiled:.1f} s")
    return Finding("ok" if finite else "wrong", note, figures)


def decode(engine: Engine, vocab_size: int, slots: int, seed: int) -> tuple[float, float, bool]:
    """(median seconds of a call, the mean context in these calls, whether all log-probabilities are finite)."""
    random, seconds, logps = np.random.default_rng(seed), [], []
    engine.submit([Request(random.integers(0, vocab_size, PROMPT).tolist(), CHUNK * (CALLS + 1), jax.random.key(row))
                   for row in range(slots)])
    while engine.busy:
        start = time.perf_counter()
        outputs = engine.step()
        seconds.append(time.perf_counter() - start)
        logps += [value for output in outputs for value in output.logps]
    return statistics.median(seconds[1 : CALLS + 1]), PROMPT + CHUNK * (1 + CALLS / 2), bool(np.isfinite(logps).all())
