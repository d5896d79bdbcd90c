"""AdamW with clipping, warmup and decay, by optax."""

import dataclasses
from typing import Any, Literal

import jax
import optax

from errors import InputError
from sharding.rules import path_name


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and its schedule."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """after warmup: cosine down to 0 at the last step, or constant"""
    warmup_steps: int = 0
    """steps of linear warmup from 0"""
    weight_decay: float = 0.0
    """decoupled; norms and biases are spared"""
    b1: float = 0.9
    b2: float = 0.999
    max_grad_norm: float = 1.0
    """global norm that gradients are clipped to; 0 clips nothing"""


def make_schedule(config: OptimizerConfig, learning_rate: float, max_steps: int) -> optax.Schedule:
    """Learning rate by step. The first step has rate learning_rate / (warmup_steps + 1), never 0."""
    warmup = config.warmup_steps
    if warmup >= max_steps > 0:
        raise InputError(f"optimizer.warmup_steps {warmup} must be fewer than --max-steps {max_steps}")
    rising = optax.linear_schedule(learning_rate / (warmup + 1), learning_rate, warmup)
    if config.schedule == "constant":
        return optax.join_schedules([rising, optax.constant_schedule(learning_rate)], [warmup])
    return optax.join_schedules([rising, optax.cosine_decay_schedule(learning_rate, max_steps - warmup)], [warmup])


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; state in the dtype of the parameters (float32)."""
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm > 0 else optax.identity()
    return optax.chain(clip, optax.adamw(schedule, config.b1, config.b2, weight_decay=config.weight_decay,
                                         mask=decayed))


def decayed(params: Any) -> Any:
    """True for matrices: kernels, embeddings, LoRA's A and B; False for norms' scales and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).split("/")[-1] not in ("scale", "bias"), params)
