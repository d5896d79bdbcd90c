"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): W x becomes W x + (alpha / rank) B A x."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.settings import LINEAR_LAYERS, LoRAConfig


def nested(lora: dict[str, Any], name: str) -> dict[str, Any]:
    """The `a` and `b` of a linear layer in a `lora` collection; made, empty, where there are none."""
    part = "attn" if name in ("q", "k", "v", "o") else "mlp"
    return lora["layers"].setdefault(part, {}).setdefault(name, {})


def concatenate(adapters: Sequence[tuple[LoRAConfig, dict[str, Any]]]) -> tuple[LoRAConfig, dict[str, Any]]:
    """One adapter, of the summed rank and in numpy, that adds what all of them add together."""
    if len(adapters) == 1:
        return adapters[0]
    rank = sum(config.rank for config, _ in adapters)
    targets = tuple(name for name in LINEAR_LAYERS if any(name in config.targets for config, _ in adapters))
    joined: dict[str, Any] = {"layers": {}}
    for name in targets:
        parts = [(config, nested(lora, name) if name in config.targets else None) for config, lora in adapters]
        nested(joined, name).update(a=_join(parts, "a", axis=2), b=_join(parts, "b", axis=1))
    return LoRAConfig(rank, float(rank), 0.0, targets), joined


def _join(parts: list[tuple[LoRAConfig, dict[str, Any] | None]], kind: str, axis: int) -> np.ndarray:
    """All of a linear layer's A (or B, with its scale) side by side; zeros for an adapter that is not on it."""
    shape = next(np.shape(lora[kind]) for _, lora in parts if lora is not None)
    pieces = []
    for config, lora in parts:
        size = (*shape[:axis], config.rank, *shape[axis + 1:])
        piece = np.zeros(size, np.float32) if lora is None else np.asarray(lora[kind], np.float32)
        pieces.append(piece * np.float32(config.scale if kind == "b" else 1))
    return np.concatenate(pieces, axis=axis)


def merge(params: Any, lora: Any, scale: float | jax.Array) -> Any:
    """`params` with kernel + scale * A @ B wherever `lora` holds an A and a B; both trees unboxed.

    The product is float32; the kernel's dtype is kept. Kernels are [L, in, out], A [L, in, R], B [L, R, out]. An array
    of `lora` itself (a reward head's) is added to its namesake.
    """
    if not isinstance(lora, dict):
        return (params.astype(jnp.float32) + lora).astype(params.dtype)
    if "a" in lora:
        product = jnp.einsum("lir,lro->lio", lora["a"], lora["b"], precision=jax.lax.Precision.HIGHEST)
        kernel = params["kernel"]
        return params | {"kernel": (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)}
    return params | {name: merge(params[name], part, scale) for name, part in lora.items()}
