"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): W x becomes W x + (alpha / rank) B A x."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from errors import InputError, shown

LINEAR_LAYERS = ("q", "k", "v", "o", "gate", "up", "down")
"""the linear layers of a block, by their names in the parameter tree"""


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Which linear layers get an adapter, and of what size; rank 0 is no LoRA (full fine-tuning)."""

    rank: int = 0
    """The adapter is A [in, R] and B [R, out] of this R; 0 trains all weights instead."""
    alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = 0.0
    """This share of the adapter's inputs is dropped in training."""
    targets: tuple[str, ...] = LINEAR_LAYERS
    """These linear layers get an adapter."""

    def unread(self) -> dict[str, str]:
        """Settings that nothing reads beside the others -> where (cli.values)."""
        return {} if self.rank else dict.fromkeys(("alpha", "dropout", "targets"), "at lora.rank 0")

    def __post_init__(self) -> None:
        unknown = [name for name in self.targets if name not in LINEAR_LAYERS]
        if unknown or not self.targets:
            raise InputError(f"lora.targets {shown(self.targets)}: choose from {', '.join(LINEAR_LAYERS)}")
        if self.rank < 0 or not 0 <= self.dropout < 1:
            raise InputError(f"lora.rank {self.rank} must be 0 or more, lora.dropout {self.dropout} in [0, 1)")
        if not self.alpha > 0:
            raise InputError(f"lora.alpha {self.alpha} must be above 0; the adapter would do nothing, or the opposite")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


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
