"""Eight simulated devices for every test, jaxtyping's shapes checked at run time."""

import os
import tempfile
from pathlib import Path

from simulated import environment

os.environ |= environment(8)
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers and the processes that tests start inherit it
    compiled = tempfile.TemporaryDirectory(prefix="temper-tests-")
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": compiled.name, "JAX_ENABLE_COMPILATION_CACHE": "true",
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}

from sharding import fastest_dtype  # noqa: E402

for devices in (1, 2, 4, 8):  # --dtype auto is the same on every machine, and measured by no test
    fastest_dtype.write_cached(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]),
                               fastest_dtype.cache_key_of(os.environ | environment(devices)), "float32")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["batch", "models", "objectives", "rewards", "rollouts"], "beartype.beartype")
