"""launches.jsonl: how a run was started, a line for each time: command, versions, devices."""

import datetime
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
FILE = "launches.jsonl"


def record_launch(run: Path, about: Mapping[str, str]) -> None:
    """Adds this process' line, with what it was told `about` the run."""
    with (run / FILE).open("a", encoding="utf-8") as file:
        print(json.dumps(this_launch() | {"about": dict(about)}, ensure_ascii=False), file=file)


def this_launch() -> dict[str, Any]:
    """What this process is."""
    import jax

    devices = jax.devices()
    return {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", *sys.orig_argv[1:]]), "commit": commit(),
            "python": platform.python_version(), **{name: version(name) for name in PACKAGES},
            "devices": f"{len(devices)} x {devices[0].device_kind}", "processes": jax.process_count()}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of these sources, `-dirty` where some were changed since; None where they are in no repository."""
    try:
        found = subprocess.run(["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"],
                               capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
