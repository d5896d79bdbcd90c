"""AdamW or Muon with clipping, warmup and decay, by optax."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax

from errors import InputError
from sharding.layout import path_name
from training.muon import scale_by_muon
from training.settings import OptimizerConfig

MUON_RMS = 0.2
"""root mean square of Muon's update before the learning rate, that of AdamW's (Liu et al. 2025, section 2.2)"""


def check(config: OptimizerConfig) -> None:
    """Raises InputError for values that make no sense, alone or together (flags and a recipe may give them apart)."""
    def require(field: str, valid: bool, otherwise: str) -> None:
        if not valid:
            raise InputError(f"optimizer.{field} {getattr(config, field)} {otherwise}")

    require("warmup_steps", config.warmup_steps >= 0, "must be 0 or more")
    require("decay_fraction", 0 < config.decay_fraction <= 1, "must be above 0 and at most 1")
    require("decay_fraction", config.schedule == "wsd" or config.decay_fraction == OptimizerConfig.decay_fraction,
            f"means nothing to the {config.schedule} schedule; leave it out, or set optimizer.schedule wsd")
    require("final_fraction", 0 <= config.final_fraction <= 1, "must be in [0, 1]")
    require("final_fraction", config.schedule != "constant" or config.final_fraction == 0,
            "means nothing to the constant schedule; leave it out, or set optimizer.schedule")
    require("weight_decay", 0 <= config.weight_decay < math.inf, "must be finite and 0 or more")
    require("b1", 0 <= config.b1 < 1, "must be in [0, 1)")
    require("b2", 0 <= config.b2 < 1, "must be in [0, 1)")
    require("max_grad_norm", config.max_grad_norm >= 0, "must be 0 (no clipping) or more")


def make_schedule(config: OptimizerConfig, learning_rate: float, max_steps: int) -> optax.Schedule:
    """Learning rate by step, from 0. The first step has rate learning_rate / (warmup_steps + 1), never 0.

    With w warmup steps and S steps in all, f the final fraction and u the share of the decay that is over:
    cosine: f + (1 - f) (1 + cos(pi u)) / 2, u = (step - w) / (S - w); linear: 1 - (1 - f) u, the same u;
    wsd: 1, and over the last decay_fraction of the S steps the linear one (warmup-stable-decay, Hu et al. 2024,
    arXiv:2404.06395, whose decay is exponential; linear as in Hagele et al. 2024, arXiv:2405.18392).
    Decay ends at step S, one after the last: the last step still moves the weights where f is 0.
    Raises InputError for a configuration that makes no sense or does not fit into the steps.
    """
    check(config)
    warmup = config.warmup_steps
    if warmup >= max_steps > 0:
        raise InputError(f"optimizer.warmup_steps {warmup} must be fewer than the run's {max_steps} updates")
    rising = optax.linear_schedule(learning_rate / (warmup + 1), learning_rate, warmup)
    stable = optax.constant_schedule(learning_rate)
    num_decay_steps = decay_steps(config, max_steps)
    if num_decay_steps == 0:
        return optax.join_schedules([rising, stable], [warmup])
    if config.schedule == "cosine":
        falling = optax.cosine_decay_schedule(learning_rate, num_decay_steps, config.final_fraction)
    else:
        falling = optax.linear_schedule(learning_rate, learning_rate * config.final_fraction, num_decay_steps)
    return optax.join_schedules([rising, stable, falling], [warmup, max_steps - num_decay_steps])


def decay_steps(config: OptimizerConfig, max_steps: int) -> int:
    """Steps at the end of the run that the decay takes."""
    after_warmup = max_steps - config.warmup_steps
    if config.schedule != "wsd":
        return 0 if config.schedule == "constant" else after_warmup
    steps = max(1, round(config.decay_fraction * max_steps))
    if steps > after_warmup:
        decay = f"optimizer.decay_fraction {config.decay_fraction} of the run's {max_steps} updates is {steps}"
        raise InputError(f"{decay}, but optimizer.warmup_steps {config.warmup_steps} leave {after_warmup}; lower one")
    return steps


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW or Muon; state in the dtype of the parameters (float32).

    AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm > 0 else optax.identity()
    adamw = optax.adamw(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=decayed)
    if config.name == "adamw":
        return optax.chain(clip, adamw)
    return optax.chain(clip, optax.partition({"muon": _muon(config, schedule), "adamw": adamw}, _labels))


def with_shardings(optimizer: optax.GradientTransformation, shardings: Any) -> optax.GradientTransformation:
    """The optimizer, told where the parameters lie (a tree of NamedSharding), which Muon's exchange goes by."""
    update = optax.with_extra_args_support(optimizer).update
    return optax.GradientTransformation(optimizer.init, functools.partial(update, shardings=shardings))


def _muon(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Momentum, orthogonalised, at AdamW's size, with decoupled weight decay (Jordan et al. 2024; Liu et al. 2025).

    W <- W - rate (0.2 sqrt(max(in, out)) NewtonSchulz(momentum) + weight_decay W), for every matrix [in, out] of a
    stack [L, in, out] on its own (arXiv:2502.16982, equation 4). At this size one learning rate serves Muon and AdamW.
    Put together here because optax.contrib.muon decays norms and biases and turns AdamW into NAdam.
    """
    return optax.chain(scale_by_muon(), optax.stateless(_at_adamw_size), optax.add_decayed_weights(config.weight_decay),
                       optax.scale_by_learning_rate(schedule))


def _at_adamw_size(updates: Any, params: Any) -> Any:
    """An orthogonal matrix [in, out] has root mean square 1 / sqrt(max(in, out))."""
    return jax.tree.map(lambda update: MUON_RMS * math.sqrt(max(update.shape[-2:])) * update, updates)


def _labels(params: Any) -> Any:
    """`muon` for the layers' matrices: kernels [L, in, out] and LoRA's A [L, in, R] and B [L, R, out].

    LoRA's factors are orthogonalised one by one, not their product: they are what is trained.
    """
    return _by_path(lambda path: "muon" if path[0] == "layers" and _is_matrix(path) else "adamw", params)


def decayed(params: Any) -> Any:
    """True for matrices: kernels, embeddings, LoRA's A and B; False for norms' scales and biases."""
    return _by_path(_is_matrix, params)


def _is_matrix(path: list[str]) -> bool:
    return path[-1] not in ("scale", "bias")


def _by_path(function: Callable[[list[str]], Any], params: Any) -> Any:
    """The function of every parameter's path; a Linen box is one parameter, and so is what partition masks."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: function(path_name(path).split("/")), params,
        is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))
