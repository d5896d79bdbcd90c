"""How fast a run computes, and how much memory it takes: FLOPs of a token, model FLOPs utilisation, peak memory.

The convention is PaLM's (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), so that figures compare with published
ones: what the model needs is counted, not what the program happens to recompute.
"""

import sys
from collections.abc import Sequence

import jax

from models.config import ModelConfig
from models.lora import LoRAConfig

PEAK_TFLOPS: dict[str, float] = {
    # dense bfloat16, per JAX device, by device_kind. TPUs: "peak compute per chip" in Google Cloud's pages of each TPU
    # version (docs.cloud.google.com/tpu/docs/system-architecture-tpu-vm); a device of v2, v3 and TPU7x is half a chip.
    "TPU v2": 45 / 2,
    "TPU v3": 123 / 2,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v5p": 459,
    "TPU v6 lite": 918,
    "TPU v6e": 918,
    "TPU7x": 2307 / 2,
    # NVIDIA's data sheets; those from Hopper on state twice this, with sparsity
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA L4": 121,
    "NVIDIA L40S": 362,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H200": 989,
    "NVIDIA H200 NVL": 835,
    "NVIDIA GH200 480GB": 990,
    "NVIDIA B200": 2250,
}


def flops_per_token(config: ModelConfig, length: int, lora: LoRAConfig | None = None) -> float:
    """FLOPs of training on one token of a row of `length` T: 6 W + 12 L N H T (PaLM, appendix B).

    W is the number of matmul weights: 2 FLOPs each forward, 4 backward. The embedding lookup is none of them, the
    output projection is, tied or not. 12 L N H T is attention's two matmuls; it counts all T positions, as PaLM does,
    although a causal row sees half of them on average and one of several packed segments fewer (a sliding window: at
    most its size).
    With LoRA the frozen weights need no gradient of their own: 4 W, and 6 for each weight of A and B.
    """
    sizes = _kernels(config)
    weights = config.num_layers * sum(rows * columns for rows, columns in sizes.values())
    weights += config.vocab_size * config.embed_dim
    seen = sum(min(length, config.window_of(layer) or length) for layer in range(config.num_layers))
    attention = 12 * config.num_heads * config.head_dim * seen
    if lora is None or lora.rank == 0:
        return 6.0 * weights + attention
    adapters = config.num_layers * lora.rank * sum(sum(sizes[name]) for name in lora.targets)
    return 4.0 * weights + 6.0 * adapters + attention


def _kernels(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of the linear layers of a block, by the names in models.lora.LINEAR_LAYERS."""
    embed, mlp = config.embed_dim, config.mlp_dim
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {"q": (embed, heads), "k": (embed, kv_heads), "v": (embed, kv_heads), "o": (heads, embed),
            "gate": (embed, mlp), "up": (embed, mlp), "down": (mlp, embed)}


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 FLOP/s that the device's maker states; None for CPUs and whatever the table does not know."""
    tera = PEAK_TFLOPS.get(device.device_kind)
    return None if tera is None else tera * 1e12


def throughput_metrics(flops_per_token: float, tokens: int, seconds: float,
                       devices: Sequence[jax.Device] | None = None) -> dict[str, float]:
    """`tflops_per_second` over all devices of the run and `mfu`, the share of their bfloat16 peak.

    `tokens` are those of all processes, padding not among them. `mfu` is left out where a peak is not known.
    """
    rate = flops_per_token * tokens / seconds
    peaks = [peak_flops(device) for device in (jax.devices() if devices is None else devices)]
    metrics = {"tflops_per_second": rate / 1e12}
    return metrics if None in peaks else metrics | {"mfu": rate / sum(peaks)}


def device_memory() -> dict[str, float]:
    """`device_memory_gib`, the peak bytes in use of this process's fullest device since it started, in GiB.

    Where devices keep no such count (CPUs): `host_memory_gib`, the peak resident size of this process.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if each and "peak_bytes_in_use" in each]
    return {"device_memory_gib": max(peaks) / 2**30} if peaks else {"host_memory_gib": _peak_resident() / 2**30}


def _peak_resident() -> int:
    """Bytes; Linux counts in KiB, macOS in bytes."""
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
