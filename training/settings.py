"""What a run says of its optimiser and its reference. No jax is imported, so that --help is quick."""

import dataclasses
from typing import Literal

from errors import InputError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and the schedule of its learning rate."""

    name: Literal["adamw", "muon"] = "adamw"
    """The optimiser is this one; muon is for the layers' matrices (LoRA's too): embedding, output head, norms and
    biases stay with AdamW."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """After warmup the learning rate decays to the end (cosine or linear), stays and then decays linearly (wsd), or
    stays (constant)."""
    warmup_steps: int = 0
    """The learning rate rises linearly from 0 for this many steps."""
    decay_fraction: float = 0.2
    """The decay of wsd takes this share of all steps."""
    final_fraction: float = 0.0
    """The decay ends, after the last step, at this share of the learning rate."""
    weight_decay: float = 0.0
    """Weights decay by this share of the learning rate a step (decoupled); norms and biases are spared."""
    b1: float = 0.9
    """AdamW's mean of gradients decays by this factor a step."""
    b2: float = 0.999
    """AdamW's mean of squared gradients decays by this factor a step."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; 0 clips nothing."""


@dataclasses.dataclass(frozen=True)
class SyncConfig:
    """TR-DPO (Gorbatovski et al. 2024, arXiv:2404.09656): every so many steps, reference <- alpha policy + (1 - alpha)
    reference."""

    every: int = 0
    """The reference is synchronised with the policy every so many steps; with 0 it stays what it was."""
    alpha: float = 0.6
    """The policy has this share in the new reference; 1 takes it over."""

    def unread(self) -> dict[str, str]:
        """Settings that nothing reads beside the others -> where (cli.values)."""
        return {} if self.every else {"alpha": "without --sync.every"}

    def __post_init__(self) -> None:
        if self.every < 0 or not 0 < self.alpha <= 1:
            raise InputError(f"sync.every {self.every} must be 0 or more, sync.alpha {self.alpha} above 0, at most 1")
