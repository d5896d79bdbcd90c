"""libtpu, the TPU's compiler, in a folder of its own: beside jax it would disturb runs on the CPU."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

from errors import InputError
from sharding.compilation_cache import default_folder

INSTALL = "pip install --no-deps --target {folder} libtpu"


def find_libtpu(given: Path | None) -> Path:
    """The folder that has it: the one `given`, else where Python finds it, else one in the user's cache folder, where
    it is put on first use. Raises InputError where there is none and none can be fetched."""
    spec = None if given else importlib.util.find_spec("libtpu")
    if spec and spec.origin:
        return Path(spec.origin).parents[1]
    folder = (given or default_folder().parent / "libtpu").expanduser().absolute()
    if (folder / "libtpu").is_dir():
        return folder
    command = INSTALL.format(folder=folder)
    if given:
        raise InputError(f"--libtpu {given}: there is no libtpu; get it by: {command}")
    print(f"libtpu, the TPU's compiler (some 140 MB), is fetched once: {command}", file=sys.stderr)
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), "libtpu"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise InputError(f"libtpu could not be fetched ({reason}); where there is a network: {command}, and give "
                         f"--libtpu that folder")
    return folder


def version_of(folder: Path) -> str:
    found = importlib.metadata.distributions(path=[str(folder)])
    return next((each.version for each in found if each.metadata["Name"] == "libtpu"), "of unknown version")
