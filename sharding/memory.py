"""How much memory a device has, and what follows from it for what is computed a part at a time."""

import os
from collections.abc import Iterator
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

CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""where Linux shows control groups, and which ones this process is in"""

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
    """Bytes that this process may take of the machine: all of it, or the least that its control group, or one above
    it, is allowed (a container's, or a job's of Slurm)."""
    own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [file.read_text().strip() for file in _limits() if file.exists()]
    return min([own, *(int(limit) for limit in limits if limit.isdigit())])


def _limits() -> Iterator[Path]:
    """The files of these limits, by versions 2 and 1 of control groups; a container may not see all of them."""
    lines = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else []
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            root, name = CGROUPS / controllers, "memory.limit_in_bytes" if controllers else "memory.max"
            folder = root / group.lstrip("/")
            yield from (each / name for each in (folder, *folder.parents) if each.is_relative_to(root))


def logits_at_a_time(layout: Layout | None) -> int:
    """Float32 logits that one device holds at a time."""
    device = jax.devices()[0] if layout is None else layout.mesh.devices.flat[0]
    memory = memory_of(device)
    return LOGITS_ON_CPU if memory is None else int(memory * LOGITS_SHARE) // 4
