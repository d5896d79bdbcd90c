"""What a run says of its model: sizes and adapters. No jax is imported, so that --help is quick."""

import dataclasses
from typing import Literal

from errors import InputError, shown

LINEAR_LAYERS = ("q", "k", "v", "o", "gate", "up", "down")
"""the linear layers of a block, by their names in the parameter tree"""

Remat = Literal["none", "dots", "attention", "full", "offload"]
"""how much of the forward pass the backward pass computes again (models/remat.py)"""


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
        if not self.alpha >= 0:  # 0 is what an export of --lora-scale 0 has; no run does (cli.flags)
            raise InputError(f"lora.alpha {self.alpha} must be above 0; the adapter would do nothing, or the opposite")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A preset, or sizes of one's own; beside a preset, a size that is given replaces the preset's."""

    preset: str | None = None
    """The sizes are those of a known model (smollm2-135m, qwen3-0.6b, llama3.1-8b, ...), with random weights."""
    embed_dim: int | None = None
    """The residual stream is this wide."""
    num_layers: int | None = None
    """The model has this many layers."""
    num_heads: int | None = None
    """A layer has this many query heads."""
    num_kv_heads: int | None = None
    """A layer has this many key and value heads; by default num_heads."""
    head_dim: int | None = None
    """A head is this wide; by default embed_dim / num_heads."""
    mlp_dim: int | None = None
    """The MLP is this wide; by default 8/3 embed_dim, rounded up to a multiple of 64."""
    max_length: int | None = None
    """The context is this many tokens; by default 2048."""
    rope_theta: float | None = None
    """The rotary frequencies have this base; by default 10000."""
    tie_embeddings: bool | None = None
    """The output head is the embedding; by default it is not."""
    qk_norm: bool | None = None
    """Queries and keys are normalised, as in Qwen 3; by default they are not."""
