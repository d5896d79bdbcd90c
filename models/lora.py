"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): W x becomes W x + (alpha / rank) B A x."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from errors import InputError

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
            raise InputError(f"lora.targets {list(self.targets)}: choose from {', '.join(LINEAR_LAYERS)}")
        if self.rank < 0 or not 0 <= self.dropout < 1:
            raise InputError(f"lora.rank {self.rank} must be 0 or more, lora.dropout {self.dropout} in [0, 1)")
        if not self.alpha > 0:
            raise InputError(f"lora.alpha {self.alpha} must be above 0; the adapter would do nothing, or the opposite")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


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
