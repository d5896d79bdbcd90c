"""What a layer keeps of its forward pass for its backward pass, by name; everything else is computed again there.

Arrays that may be kept bear a name (jax.ad_checkpoint.checkpoint_name): ATTENTION, what an attention kernel needs so as
not to run again, its output and the logsumexp of its scores; MATMUL, what comes out of the linear layers; LAYER_INPUT,
the residual stream where a layer begins, which jax.checkpoint keeps on the device unless it is offloaded.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

ATTENTION = "attention"
MATMUL = "matmul"
LAYER_INPUT = "layer_input"

CUDNN = "dot_product_attention_fwd_wrapper"
"""the forward pass of cuDNN's attention, as JAX binds it: its results have no name of ours, and count as ATTENTION"""


def _saveable(*names: str) -> Callable[..., bool]:
    """The policy of keeping arrays of these names."""
    def policy(primitive: Any, *_: Any, **params: Any) -> bool:
        return primitive.name == CUDNN or primitive.name == "name" and params["name"] in names

    return policy


_offload_named = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[], names_which_can_be_offloaded=[ATTENTION, LAYER_INPUT],
    offload_src="device", offload_dst="pinned_host")


def _offload(primitive: Any, *avals: Any, **params: Any) -> Any:
    return primitive.name == CUDNN or _offload_named(primitive, *avals, **params)


attention_saveable = _saveable(ATTENTION)

POLICIES = {"dots": _saveable(ATTENTION, MATMUL), "attention": attention_saveable, "full": None, "offload": _offload}
"""jax.checkpoint's, by ModelConfig.remat; `offload` is `attention` with all that is kept in the host's memory, but for
what cuDNN keeps (on CPUs the host's memory is the device's)"""

computed_again = functools.partial(jax.checkpoint, prevent_cse=False)
"""of elementwise work: the backward pass has what went in, and not every step in between. To read that again takes
longer than to compute it, so this is done whatever the policy."""
