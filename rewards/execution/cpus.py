"""How many processes can run at once here: by the cores that this process may use and the share of them that it has."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cpus(root: Path = CGROUPS) -> int:
    """At least 1: the cores of this process's affinity, or the quota of its cgroup (v2 or v1) where that is less."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(int(quota) for quota in (_quota_v2(root), _quota_v1(root)) if quota)]))


def _quota_v2(root: Path) -> float | None:
    """CPUs by the tightest cpu.max on the way to this process's group."""
    quotas = [_read(folder / "cpu.max") for folder in groups_of(root)]
    pairs = [quota.split() for quota in quotas if quota and not quota.startswith("max")]
    return min((int(quota) / int(period) for quota, period in pairs), default=None)


def _quota_v1(root: Path) -> float | None:
    quota, period = (_read(root / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def groups_of(root: Path) -> list[Path]:
    """The folders of this process's group and of those above it, as far as they can be seen."""
    lines = (_read(Path("/proc/self/cgroup")) or "").splitlines()
    group = next((root / line.removeprefix("0::/") for line in lines if line.startswith("0::/")), root)
    return [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
