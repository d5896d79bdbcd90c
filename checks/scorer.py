"""The vocabulary scorer (models/projection.py) against log-softmax of whole logits: every statistic, every gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checks.attention import judged
from checks.machine import Machine, reference_device
from checks.tolerance import tolerance, worst_error
from checks.verdicts import Check, Finding
from models.projection import statistics

PART = "scorer"
TEMPERATURE = 0.8
LOGITS, GRADIENTS = 2, 8
"""roundings: float32 logits of rounded factors have none, but a product's passes; a gradient has the cotangent of
logits, its products with hidden states and head, and their sums over tokens or vocabulary"""
NAMES = ("logp", "entropy", "log_z", "log_collision")


def checks(machine: Machine) -> list[Check]:
    return [Check(PART, f"{'tied' if tied else 'untied'} head, {dtype}",
                  functools.partial(check, sizes(machine), tied, dtype))
            for tied in (True, False) for dtype in ("bfloat16", "float32")]


def sizes(machine: Machine) -> tuple[int, int, int, int]:
    """Rows, positions, width and vocabulary: several chunks of tokens, of which the last is not full."""
    return (2, 1151, 32, 515) if machine.quick else (3, 1001, 512, 32007)


def check(shape: tuple[int, int, int, int], tied: bool, dtype: str) -> Finding:
    inputs = arrays(shape, tied)
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        found = jax.device_get(jax.jit(functools.partial(scored, tied))(*_as(inputs, dtype)))
    with jax.default_device(reference_device()), jax.default_matmul_precision("highest"):
        there = jax.device_put(_as(inputs, "float32"), reference_device())
        expected = jax.device_get(jax.jit(functools.partial(plainly, tied))(*there))
    limits = {name: tolerance("float32", LOGITS, shape[2]) for name in NAMES}
    limits |= {name: tolerance(dtype, GRADIENTS, shape[3]) for name in ("to hidden", "to head")}
    return judged({name: (worst_error(_vectors(each), _vectors(other)), limits[name])
                   for (name, each), other in zip(found.items(), expected.values(), strict=True)})


def _vectors(each: np.ndarray) -> np.ndarray:
    """A statistic [B, T] is as many vectors of one number."""
    return each[..., None] if each.ndim == 2 and each.shape[0] < 8 else each


def arrays(shape: tuple[int, int, int, int], tied: bool, seed: int = 0) -> list[Any]:
    """Hidden states, head, tokens, and cotangents of the four statistics, each of another size."""
    rows, positions, width, vocab = shape
    random = np.random.default_rng(seed)
    hidden = random.standard_normal((rows, positions, width))
    head = random.standard_normal((vocab, width) if tied else (width, vocab)) / np.sqrt(width)
    tokens = random.integers(0, vocab, (rows, positions))
    return [hidden, head, tokens, random.standard_normal((len(NAMES), rows, positions))]


def _as(inputs: list[Any], dtype: str) -> list[Any]:
    hidden, head, tokens, cotangents = inputs
    return [jnp.asarray(hidden, jnp.bfloat16).astype(dtype), jnp.asarray(head, jnp.bfloat16).astype(dtype),
            jnp.asarray(tokens, jnp.int32), jnp.asarray(cotangents, jnp.float32)]


def scored(tied: bool, hidden: Any, head: Any, tokens: Any, cotangents: Any) -> dict[str, Any]:
    """By models.projection."""
    def run(hidden: Any, head: Any) -> Any:
        found = statistics(hidden, head, tokens, TEMPERATURE, tied)
        return tuple(getattr(found, name) for name in NAMES)

    return _with_gradients(run, hidden, head, cotangents)


def plainly(tied: bool, hidden: Any, head: Any, tokens: Any, cotangents: Any) -> dict[str, Any]:
    """From logits [B, T, V]."""
    def run(hidden: Any, head: Any) -> Any:
        logits = jnp.einsum("btd,vd->btv" if tied else "btd,dv->btv", hidden, head) / TEMPERATURE
        logps = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0]
        entropy = -jnp.sum(jnp.exp(logps) * logps, axis=-1)
        return chosen, entropy, jax.nn.logsumexp(logits, axis=-1), jax.nn.logsumexp(2 * logps, axis=-1)

    return _with_gradients(run, hidden, head, cotangents)


def _with_gradients(run: Any, hidden: Any, head: Any, cotangents: Any) -> dict[str, Any]:
    found, back = jax.vjp(run, hidden, head)
    to_hidden, to_head = back(tuple(cotangents))
    return dict(zip(NAMES, found)) | {"to hidden": to_hidden, "to head": to_head}
