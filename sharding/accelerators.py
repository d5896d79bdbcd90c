"""What JAX will compute on, told by what this machine has: no JAX is imported and no backend is started."""

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path

DEVICES = Path("/dev")


def on_cpus(environ: Mapping[str, str]) -> bool:
    """Whether JAX will compute on CPUs: as the environment says, or else where there is no accelerator, or none for
    which JAX's plugin is installed."""
    platforms = environ.get("JAX_PLATFORMS") or environ.get("JAX_PLATFORM_NAME")
    if platforms:
        return platforms.split(",")[0].strip().lower() == "cpu"
    tpu = has_tpu_chips() and importlib.util.find_spec("libtpu") is not None
    return not tpu and not (_has_gpus(environ) and importlib.metadata.entry_points(group="jax_plugins"))


def has_tpu_chips() -> bool:
    """v2 to v4 show as /dev/accel0, later ones under /dev/vfio."""
    return _any("accel[0-9]*", "vfio/[0-9]*")


def _has_gpus(environ: Mapping[str, str]) -> bool:
    """NVIDIA's, those of Windows in its Linux, and AMD's, unless they are hidden."""
    return _any("nvidia[0-9]*", "dxg", "kfd") and environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def _any(*patterns: str) -> bool:
    return any(any(DEVICES.glob(pattern)) for pattern in patterns)
