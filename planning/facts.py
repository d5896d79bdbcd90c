"""What a program is, before it is compiled: its mesh, FLOPs and arguments, as JSON."""

from typing import Any

import jax

from planning.flops import count_flops
from planning.program import Program, held
from sharding.layout import AXES

NAMED = 12
"""arrays that are named, the largest"""


def describe(program: Program, traced: Any) -> dict[str, Any]:
    """Of a program and its trace."""
    devices = list(program.layout.mesh.devices.flat)
    flops, (arguments, resident) = count_flops(traced.jaxpr), map(held, (program.arguments, program.resident))
    return {"name": program.name, "device_kind": devices[0].device_kind, "platform": devices[0].platform,
            "mesh": {axis: program.layout.mesh.shape[axis] for axis in AXES},
            "coords": [list(getattr(device, "coords", (device.id, 0, 0))) for device in devices],
            "slices": [getattr(device, "slice_index", 0) for device in devices],
            "flops": flops.products, "kernel_flops": flops.kernels, "model_flops": program.model_flops,
            "times": program.times, "of": program.of, "tokens": program.tokens,
            "arguments": sum(each.bytes for each in arguments), "largest_arguments": arguments[:NAMED],
            "resident": sum(each.bytes for each in resident), "largest_resident": resident[:NAMED],
            "jax": jax.__version__}
