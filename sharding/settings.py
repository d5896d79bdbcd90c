"""What a run says of its mesh. No jax is imported, so that --help is quick."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices. -1, once at most: whatever is left."""

    data: int = -1
    """The weights are copied this many times, each copy with its own rows (data parallel)."""
    fsdp: int = 1
    """Weights, optimiser state and rows are split this many ways (fully sharded data parallel)."""
    tensor: int = 1
    """Heads, mlp and vocabulary are split this many ways (tensor parallel)."""
    slice: int = 1
    """Slices of TPUs that only a slower network joins; the weights are copied to each (data parallel over them)."""
    allow_replicated: bool = False
    """Large weights that the rules split over no axis lie whole on every device; without it they end the run."""
    rules: tuple[str, ...] = ()
    """Lines AXIS=MESH_AXIS that change how arrays lie (docs/meshes.md): residual_length=tensor is sequence
    parallelism."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Gradients of weights are summed over devices in this; bfloat16 exchanges half, and rounds each sum."""


@dataclasses.dataclass(frozen=True)
class SamplingMesh:
    """How the devices of the mesh are laid out while sampling (rollouts.layout): no weight is split by rows there."""

    data: int = -1
    """The weights are copied this many times, each copy with its own completions; -1 is whatever is left."""
    tensor: int = -1
    """Heads, mlp and vocabulary are split this many ways; -1 is as many as kv heads, and the devices that train as fsdp
    or tensor, allow."""
