"""What this machine is, and how much of everything its size allows a check to ask for."""

import importlib.metadata
from typing import Any, NamedTuple

PACKAGES = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "numpy")


class Machine(NamedTuple):
    """Where the checks run."""

    platform: str
    """cpu, gpu or tpu"""
    kind: str
    count: int
    bandwidth: float | None
    """bytes a second that the maker states of a device's memory"""
    peak_flops: float | None
    """bfloat16 FLOP/s that the maker states of a device"""
    quick: bool
    """small sizes: a minute or two on two cores of a CPU"""

    @property
    def is_accelerator(self) -> bool:
        return self.platform in ("gpu", "tpu")


def this_machine(quick: bool) -> Machine:
    """A CPU is quick always."""
    import jax

    from sharding.memory import MEMORY_SPEED
    from training.throughput import peak_flops

    device = jax.devices()[0]
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
    return Machine(platform, device.device_kind, len(jax.devices()), MEMORY_SPEED.get(device.device_kind),
                   peak_flops(device), quick or platform == "cpu")


def described(machine: Machine) -> dict[str, Any]:
    """As JSON has it, with the versions of what computes."""
    import jax

    return machine._asdict() | {"versions": {name: version for name in PACKAGES if (version := _version(name))},
                                "runtime": getattr(jax.devices()[0].client, "platform_version", "").splitlines()[:1]}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def reference_device() -> Any:
    """The machine's CPU, whose compiler and arithmetic are others than the accelerator's; where JAX was told to have
    none (JAX_PLATFORMS), the device itself."""
    import jax

    try:
        return jax.devices("cpu")[0]
    except RuntimeError:
        return jax.devices()[0]
