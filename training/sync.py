"""A reference policy that follows the trained one (TR-DPO)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from errors import InputError
from training.state import TrainState


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


def start_sync(state: TrainState, sync: SyncConfig) -> TrainState:
    """The state with a reference of its own, equal to the policy, where it is to follow the policy."""
    copied = jax.jit(lambda trainable: jax.tree.map(jnp.copy, trainable),
                     out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state.trainable))
    return state.replace(reference=copied(state.trainable)) if sync.every else state


def make_sync(sync: SyncConfig) -> Callable[[TrainState], TrainState]:
    """What a train step applies to its new state: the synchronisation, where one is due."""
    def synchronise(state: TrainState) -> TrainState:
        if state.reference is None:
            return state
        share = jnp.where(state.step % sync.every == 0, sync.alpha, 0.0)
        mixed = jax.tree.map(lambda old, new: old + share * (new - old), state.reference, state.trainable)
        return state.replace(reference=mixed)

    return synchronise
