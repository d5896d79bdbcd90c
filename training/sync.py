"""A reference policy that follows the trained one (TR-DPO)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from training.settings import SyncConfig
from training.state import TrainState


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
