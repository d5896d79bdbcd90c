"""What this machine is, and how much of everything its size allows a check to ask for."""

import importlib.metadata
from typing import Any, NamedTuple

PACKAGES = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "numpy")

BANDWIDTH: dict[str, float] = {
    # bytes a second of a JAX device's memory, by device_kind; TPUs: Google Cloud's pages of each TPU version ("HBM
    # bandwidth per chip"), GPUs: NVIDIA's data sheets
    "TPU v4": 1.2e12, "TPU v5 lite": 0.819e12, "TPU v5e": 0.819e12, "TPU v5": 2.765e12, "TPU v5p": 2.765e12,
    "TPU v6 lite": 1.638e12, "TPU v6e": 1.638e12, "TPU7x": 3.69e12,
    "NVIDIA A100-SXM4-40GB": 1.555e12, "NVIDIA A100-SXM4-80GB": 2.039e12, "NVIDIA A100-PCIE-40GB": 1.555e12,
    "NVIDIA A100 80GB PCIe": 1.935e12, "NVIDIA L4": 0.3e12, "NVIDIA L40S": 0.864e12,
    "NVIDIA H100 80GB HBM3": 3.35e12, "NVIDIA H100 PCIe": 2.0e12, "NVIDIA H100 NVL": 3.9e12, "NVIDIA H200": 4.8e12,
    "NVIDIA H200 NVL": 4.8e12, "NVIDIA GH200 480GB": 4.0e12, "NVIDIA B200": 8.0e12,
}


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

    from training.throughput import peak_flops

    device = jax.devices()[0]
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
    return Machine(platform, device.device_kind, len(jax.devices()), BANDWIDTH.get(device.device_kind),
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
