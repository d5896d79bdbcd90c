"""How much memory a device has, and what follows from it for what is computed a part at a time."""

import os
from pathlib import Path

import jax

from sharding.layout import Layout

HBM_GIB = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5e": 16, "TPU v5": 95, "TPU v5p": 95, "TPU v6 lite": 32,
           "TPU v6e": 32, "TPU7x": 96}
"""of a JAX device, by device_kind, from Google Cloud's pages of each TPU version: a topology that is only compiled for
does not tell"""

MEMORY_SPEED: dict[str, float] = {
    "TPU v4": 1.2e12, "TPU v5 lite": 0.819e12, "TPU v5e": 0.819e12, "TPU v5": 2.765e12, "TPU v5p": 2.765e12,
    "TPU v6 lite": 1.638e12, "TPU v6e": 1.638e12, "TPU7x": 3.69e12,
    "NVIDIA A100-SXM4-40GB": 1.555e12, "NVIDIA A100-SXM4-80GB": 2.039e12, "NVIDIA A100-PCIE-40GB": 1.555e12,
    "NVIDIA A100 80GB PCIe": 1.935e12, "NVIDIA L4": 0.3e12, "NVIDIA L40S": 0.864e12,
    "NVIDIA H100 80GB HBM3": 3.35e12, "NVIDIA H100 PCIe": 2.0e12, "NVIDIA H100 NVL": 3.9e12, "NVIDIA H200": 4.8e12,
    "NVIDIA H200 NVL": 4.8e12, "NVIDIA GH200 480GB": 4.0e12, "NVIDIA B200": 8.0e12}
"""bytes a second of a JAX device's memory, by device_kind; TPUs: Google Cloud's pages of each TPU version, GPUs:
NVIDIA's data sheets"""

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""of versions 2 and 1, as a container sees its own"""

LOGITS_SHARE = 1 / 64
"""of a device's memory that the logits of a chunk may take"""

LOGITS_ON_CPU = 2**25
"""logits at a time (128 MiB in float32) where the device's memory is the machine's"""


def memory_of(device: jax.Device) -> int | None:
    """Bytes; None for a CPU, and for what tells nothing."""
    if device.platform == "cpu":
        return None
    if device.device_kind in HBM_GIB:
        return HBM_GIB[device.device_kind] * 2**30
    return (device.memory_stats() or {}).get("bytes_limit")


def machine_memory() -> int:
    """Bytes that this process may take of the machine: all of it, or what its control group is allowed."""
    own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [file.read_text().strip() for file in CGROUP_LIMITS if file.exists()]
    return min([own, *(int(limit) for limit in limits if limit.isdigit())])


def logits_at_a_time(layout: Layout | None) -> int:
    """Float32 logits that one device holds at a time."""
    device = jax.devices()[0] if layout is None else layout.mesh.devices.flat[0]
    memory = memory_of(device)
    return LOGITS_ON_CPU if memory is None else int(memory * LOGITS_SHARE) // 4
