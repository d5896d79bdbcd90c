"""Tokens a second, MFU, memory and compile seconds of the train step, SFT (all weights) and DPO (LoRA), random weights.

The step is the scripts' own (training.step.make_train_step), over all devices (fsdp), bfloat16 with weights in float32
where they are trained, `--remat dots`, rows without padding. Speed is of the median of STEPS steps behind one that is
not counted. Memory is the compiler's own account of the step on a device, its state included.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from batch import Row, pad
from checks.machine import Machine
from checks.sizes import shown_size, sized, sizes
from checks.verdicts import Check, Finding
from models.architecture import random_params
from models.config import ModelConfig
from models.settings import LoRAConfig
from models.transformer import Transformer
from objectives.dpo import configure
from objectives.sft import sft
from sharding.mesh import make_layout
from sharding.placement import Placement
from sharding.settings import MeshConfig
from training.optimizer import make_optimizer
from training.reference import prepare_pairs
from training.settings import OptimizerConfig
from training.state import init_state
from training.step import make_train_step
from training.throughput import flops_per_token, throughput_metrics

PART = "training speed"
ROWS, LENGTH, STEPS = 4, 2048, 5
"""rows of a device and their tokens; steps that are timed"""
LORA = LoRAConfig(rank=16)


def checks(machine: Machine) -> list[Check]:
    return [Check(PART, f"{name} {shown_size(preset, machine)}", functools.partial(measure, machine, preset, kind))
            for preset in sizes(machine) for name, kind in (("sft", sft_step), ("dpo", dpo_step))]


def measure(machine: Machine, preset: str, kind: Callable[..., Any]) -> Finding:
    config = dataclasses.replace(sized(preset, machine), remat="dots")
    rows, length, steps = (2, 128, 2) if machine.quick else (ROWS, LENGTH, STEPS)
    rows *= machine.count
    layout = make_layout(MeshConfig(data=1, fsdp=-1))
    state, prepare, step, placement, lora = kind(config, layout, rows)
    batch = placement.put(random_rows(config, rows, length), list(range(placement.batch_size)))
    start = time.perf_counter()
    batch = prepare(state, batch)
    compiled = step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start

    def once(state: Any, columns: Any) -> Any:
        return compiled(state, prepare(state, columns))

    columns = {name: column for name, column in batch.items() if name not in ("ref_logps", "chosen_length")}
    seconds, loss = timed(once, state, columns, steps)
    speed = throughput_metrics(flops_per_token(config, length, lora), rows * length, seconds)
    figures = {"tokens_per_second": rows * length / seconds, "mfu": speed.get("mfu"), "step_seconds": seconds,
               "memory_gib": memory_gib(compiled), "compile_seconds": compile_seconds}
    return Finding("ok" if np.isfinite(loss) else "wrong", told(figures, f"loss {loss:.3f}"), figures)


def told(figures: dict[str, float | None], rest: str) -> str:
    mfu = "" if figures.get("mfu") is None else f"MFU {figures['mfu']:.1%}, "
    return (f"{figures['tokens_per_second']:,.0f} tokens/s, {figures['step_seconds']:.3f} s a step, {mfu}"
            f"{figures['memory_gib']:.2f} GiB a device, compiled in {figures['compile_seconds']:.1f} s, {rest}")


def timed(step: Callable[..., Any], state: Any, columns: Any, steps: int) -> tuple[float, float]:
    """(median seconds of a step, the last loss); the metrics are waited for, and with them the device."""
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        state, metrics = step(state, columns)
        loss = float(jax.block_until_ready((state.step, metrics["loss"]))[1])
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), loss


def memory_gib(compiled: Any) -> float:
    """Arguments, results that are not donated arguments, and temporaries of one device."""
    account = compiled.memory_analysis()
    return (account.argument_size_in_bytes + account.output_size_in_bytes - account.alias_size_in_bytes
            + account.temp_size_in_bytes) / 2**30


def sft_step(config: ModelConfig, layout: Any, rows: int) -> Any:
    """(state, prepare, step, placement, None): all weights are trained."""
    model = Transformer(config, training=True, layout=layout)
    state, step = start(model, config, layout, sft)
    return state, lambda state, batch: batch, step, Placement(rows, 1, layout), None


def dpo_step(config: ModelConfig, layout: Any, rows: int) -> Any:
    """LoRA on weights in bfloat16, the reference is the model without it."""
    objective = configure()
    model = Transformer(config, LORA, training=True, layout=layout)
    stored = dataclasses.replace(config, param_dtype=config.dtype)
    state, step = start(model.clone(config=stored), stored, layout, objective)
    prepare = prepare_pairs(model.clone(config=stored, training=False), None, layout, objective)
    return state, prepare, step, Placement(rows // 2, 1, layout, group=2), LORA


def start(model: Transformer, config: ModelConfig, layout: Any, objective: Any) -> tuple[Any, Any]:
    schedule = optax.constant_schedule(1e-5)
    optimizer = make_optimizer(OptimizerConfig(), schedule)
    params = random_params(config, jax.random.key(0), layout)
    state = init_state(model, params, optimizer, jax.random.key(1), layout)
    return state, make_train_step(model, objective, optimizer, schedule, state)


def random_rows(config: ModelConfig, rows: int, length: int) -> dict[str, np.ndarray]:
    """Full rows of random tokens, all of them but the first targets."""
    random, mask = np.random.default_rng(0), np.arange(length) > 0
    made = [Row(random.integers(0, config.vocab_size, length).astype(np.int32), mask.astype(np.float32))
            for _ in range(rows)]
    return pad([row.columns() for row in made], [length])
