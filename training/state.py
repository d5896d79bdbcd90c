"""The train state: what a step reads and writes, and what a checkpoint holds."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from models.transformer import Transformer, init_variables
from sharding.layout import Layout


@flax.struct.dataclass
class TrainState:
    """The trainable collection is `lora` where there is one, else `params`; only that has optimiser state."""

    step: jax.Array
    """optimiser steps taken, skipped ones included"""
    params: Any
    lora: Any
    """None in full fine-tuning"""
    opt_state: Any
    rng: jax.Array
    """typed key; a step uses fold_in(rng, step)"""
    reference: Any = None
    """a reference policy that follows the trained one, in the trainable collection's shape; None where none does"""
    critic: "TrainState | None" = None
    """of the model that says what states are worth: with a step, an optimiser and a key of its own; None where none
    does"""

    @property
    def trainable(self) -> Any:
        return self.params if self.lora is None else self.lora

    def variables(self) -> dict[str, Any]:
        """What Transformer.apply takes."""
        return {"params": self.params} | ({} if self.lora is None else {"lora": self.lora})

    def with_trainable(self, trainable: Any) -> "TrainState":
        return self.replace(params=trainable) if self.lora is None else self.replace(lora=trainable)


def with_params_of(state: TrainState, other: TrainState) -> TrainState:
    """The state with the other's weights where it has such: two adapters of one base keep one copy of it, although a
    step, to which its state is donated, gives the weights back as new arrays."""
    return state.replace(params={name: other.params.get(name, own) for name, own in state.params.items()})


def quick_compilation(layout: Layout) -> dict[str, Any] | None:
    """Options of the compiler for little that is computed once: on CPUs, optimising it takes longer than running it."""
    return {"xla_backend_optimization_level": 0} if layout.mesh.devices.flat[0].platform == "cpu" else None


def init_state(model: Transformer, params: Any, optimizer: optax.GradientTransformation, key: jax.Array,
               layout: Layout) -> TrainState:
    """Step 0 around `params` that are laid out already; LoRA and optimiser state are made on their shards."""
    lora_key, rng = jax.random.split(key)
    boxed = jax.eval_shape(lambda: init_variables(model, lora_key))
    trainable_boxed = boxed.get("lora", boxed["params"])
    opt_shardings = layout.tree_shardings(jax.eval_shape(optimizer.init, trainable_boxed))
    lora = None
    if "lora" in boxed:
        make = jax.jit(lambda key: nn.meta.unbox(init_variables(model, key)["lora"]),
                       out_shardings=layout.tree_shardings(boxed["lora"]), compiler_options=quick_compilation(layout))
        lora = make(lora_key)
    trainable = params if lora is None else lora
    opt_state = jax.jit(optimizer.init, out_shardings=nn.meta.unbox(opt_shardings))(trainable)
    step, rng = jax.jit(lambda rng: (jnp.zeros((), jnp.int32), rng), out_shardings=layout.sharding())(rng)
    return TrainState(step, params, lora, opt_state, rng)
