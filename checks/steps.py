"""Train steps, full and LoRA, AdamW and Muon, against the gradient of the loss written out in float32.

The step is the scripts' own, of two micro-batches of packed rows, on all devices. After one step AdamW's first moment
is (1 - b1) times the clipped gradient, Muon's likewise, so the optimiser's state tells the gradient that it was given;
and what it made of it is compared with the update written out in float64 from that state.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from checks import small_model
from checks.attention import judged
from checks.machine import Machine
from checks.small_model import LORA, OF_A_LAYER, plain_logits, plain_logps
from checks.tolerance import tolerance
from checks.verdicts import Check, Finding
from models.transformer import Transformer
from objectives.sft import sft
from sharding.layout import path_name
from sharding.mesh import make_layout
from sharding.placement import Placement
from sharding.settings import MeshConfig
from training.muon import MOMENTUM, newton_schulz
from training.optimizer import MUON_RMS, make_optimizer
from training.settings import OptimizerConfig
from training.state import init_state
from training.step import make_train_step

PART = "train step"
RATE, DECAY, CLIP = 0.01, 0.1, 0.5


def checks(machine: Machine) -> list[Check]:
    """A quick machine has each of the trained, of the optimisers and of the dtypes once."""
    pairs = [("full", "adamw"), ("full", "muon"), ("lora", "adamw")]
    cases = [(*pair, dtype) for pair in pairs for dtype in ("bfloat16", "float32")]
    cases = [cases[0], cases[3], cases[4]] if machine.quick else cases
    named = [Check(PART, ", ".join(case), functools.partial(check, machine, *case)) for case in cases]
    return [*named, Check(PART, "Muon's Newton-Schulz", functools.partial(check_newton_schulz, machine))]


def check(machine: Machine, trained: str, optimizer: str, dtype: str) -> Finding:
    lora = LORA if trained == "lora" else None
    config = small_model.config(dtype, tie_embeddings=lora is None)
    held, batch = small_model.variables(config, lora), packed_rows(128 if machine.quick else 1152, config.vocab_size)
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        before, after, metrics = one_step(config, lora, held, batch, optimizer)
    loss, grads = reference(config, lora, held, batch)
    norm = float(optax.tree.norm(grads))
    grads = jax.tree.map(lambda each: each * min(1, CLIP / norm), grads)
    stages = 2 * OF_A_LAYER * config.num_layers
    limit = tolerance(dtype, stages, config.mlp_dim)
    errors = {"loss": (abs(metrics["loss"] - loss) / abs(loss), limit),
              "gradient norm": (abs(metrics["grad_norm"] - norm) / norm, limit)}
    errors |= {f"gradient of {name}": (error, limit) for name, error in gradient_errors(after.opt_state, grads).items()}
    rounding = tolerance("float32", 4, 1)
    errors["update"] = (update_error(before, after, MUON_ROUNDING[dtype] if optimizer == "muon" else 0.0), rounding)
    worst = {name: errors[name] for name in sorted(errors, key=lambda name: -errors[name][0] / errors[name][1])[:3]}
    return judged(worst | {name: errors[name] for name in ("loss", "update")})


def one_step(config: Any, lora: Any, held: Any, batch: dict[str, np.ndarray], optimizer: str) -> tuple[Any, Any, Any]:
    """(trainable before, state after, metrics) of one step on all devices, as rows and layout divide."""
    layout = make_layout(MeshConfig(data=1, fsdp=-1))
    model = Transformer(config, lora, training=True, layout=layout)
    schedule = optax.constant_schedule(RATE)
    made = make_optimizer(OptimizerConfig(name=optimizer, weight_decay=DECAY, max_grad_norm=CLIP), schedule)
    shapes = jax.eval_shape(lambda: small_model.init_variables(model, jax.random.key(0)))
    there = jax.device_put(jax.tree.map(np.array, held), layout.tree_shardings(shapes))
    state = init_state(model, there["params"], made, jax.random.key(0), layout)
    state = state if lora is None else state.replace(lora=there["lora"])
    before = jax.device_get(state.trainable)
    step = make_train_step(model, sft, made, schedule, state)
    records = len(batch["tokens"])
    state, metrics = step(state, Placement(records, 2, layout).put(batch, list(range(records))))
    return before, jax.device_get(state.replace(rng=None)), {name: float(each) for name, each in metrics.items()}


def packed_rows(length: int, vocab_size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of several segments and of one, half of the tokens targets."""
    random, rows = np.random.default_rng(seed), 8
    batch = {name: np.zeros((rows, length), np.int32) for name in ("tokens", "positions", "segment_ids")}
    batch["loss_mask"] = np.zeros((rows, length), np.float32)
    for row in range(rows):
        ends = np.sort(random.choice(np.arange(8, length), 2, replace=False)) if row % 2 else [length - row]
        start = 0
        for number, end in enumerate(ends, 1):
            batch["tokens"][row, start:end] = random.integers(0, vocab_size, end - start)
            batch["positions"][row, start:end] = np.arange(end - start)
            batch["segment_ids"][row, start:end] = number
            batch["loss_mask"][row, start + 1 : end] = random.random(end - start - 1) < 0.5
            start = end
    return batch


def reference(config: Any, lora: Any, held: Any, batch: dict[str, np.ndarray]) -> tuple[float, Any]:
    """(loss, gradient of what is trained): the mean of -log p over targets, of all rows at once."""
    name = "params" if lora is None else "lora"

    def loss(trained: Any, held: Any, batch: Any) -> Any:
        logps = plain_logps(plain_logits(config, lora, held | {name: trained}, batch), batch)
        return -jnp.sum(logps * batch["loss_mask"]) / jnp.sum(batch["loss_mask"])

    found, grads = small_model.in_reference(jax.value_and_grad(loss), held[name], held, batch)
    return float(found), grads


def gradient_errors(opt_state: Any, expected: Any) -> dict[str, float]:
    """|found - expected| / |expected| of each array; found is the first moment without its factor."""
    moments = {path: leaf / (1 - (MOMENTUM if "muon" in path else 0.9)) for path, leaf in _moments(opt_state, "mu")}
    errors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        name = path_name(path)
        found = next(each for moment, each in moments.items() if moment.endswith(f"/{name}"))
        errors[name] = float(np.linalg.norm(found - leaf) / np.linalg.norm(leaf))
    return errors


def _moments(opt_state: Any, kind: str) -> list[tuple[str, np.ndarray]]:
    return [(path_name(path), np.asarray(leaf, np.float64))
            for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state) if f"/{kind}/" in f"/{path_name(path)}/"]


MUON_ROUNDING = {"bfloat16": 0.1, "float32": 1e-3}
"""of Newton-Schulz's result, checked on its own (check_newton_schulz): in its five rounds small singular values grow by
3.44 each, and the roundings with them"""


def update_error(before: Any, after: Any, of_muon: float) -> float:
    """The largest |found - expected| of an update, in learning rates; what Muon may differ by is taken off.

    AdamW's first: -rate (m / (sqrt(v) + eps) + decay w), m = mu / (1 - b1), v = nu / (1 - b2); Muon's: -rate (0.2
    sqrt(max(in, out)) NewtonSchulz(m) + decay w). No decay for scales.
    """
    mus, nus = dict(_moments(after.opt_state, "mu")), dict(_moments(after.opt_state, "nu"))
    worst = 0.0
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after.trainable),
                                strict=True):
        name = path_name(path)
        place = next(each for each in mus if each.endswith(f"/{name}"))
        decay = 0.0 if name.endswith("scale") else DECAY
        old = old.astype(np.float64)
        if "muon" in place:
            move, allowed = muon_update(mus[place]), of_muon * MUON_RMS
        else:
            mean = mus[place] / (1 - 0.9)
            move, allowed = mean / (np.sqrt(nus[place.replace("/mu/", "/nu/")] / (1 - 0.999)) + 1e-8), 0.0
        found = (new - old) / -RATE
        error = np.sqrt(np.mean((found - move - decay * old) ** 2)) - allowed
        worst = max(worst, float(error) / max(1.0, float(np.abs(old).max() / RATE)))
    return worst if np.isfinite(worst) else float("inf")


def muon_update(mu: np.ndarray) -> np.ndarray:
    """At the first step the momentum that is orthogonalised is the gradient times 0.95 (1 - 0.95) / (1 - 0.95^2) + 1 -
    0.95, of which Newton-Schulz keeps the direction alone."""
    return MUON_RMS * np.sqrt(max(mu.shape[-2:])) * plain_newton_schulz(mu)


def plain_newton_schulz(stack: np.ndarray) -> np.ndarray:
    """Five rounds of X <- a X + (b A + c A^2) X, A = X X^T, from X / |X| (Jordan et al. 2024), in float64."""
    x = stack.astype(np.float64)
    tall = x.shape[-2] > x.shape[-1]
    x = x.swapaxes(-1, -2) if tall else x
    x = x / (np.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8)
    for _ in range(5):
        a = x @ x.swapaxes(-1, -2)
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.swapaxes(-1, -2) if tall else x


def check_newton_schulz(machine: Machine) -> Finding:
    """Of matrices whose singular values lie between 1 and 1/4, as the platform multiplies by default."""
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((3, size, 96)))[0] for size in (192, 96))
    stack = (left * np.linspace(1, 0.25, 96)) @ right.swapaxes(-1, -2)
    found = np.asarray(jax.jit(newton_schulz)(jnp.asarray(stack, jnp.float32)), np.float64)
    expected = plain_newton_schulz(stack)
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    limit = tolerance("bfloat16" if machine.is_accelerator else "float32", 15, 192)
    return judged({"orthogonal matrices": (error, limit)})
