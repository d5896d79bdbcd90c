"""Eight simulated devices for every test, jaxtyping's shapes checked at run time."""

import os
import tempfile

from simulated import environment

os.environ |= environment(8)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers and the processes that tests start inherit it
    compiled = tempfile.TemporaryDirectory(prefix="temper-tests-")
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": compiled.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["batch", "models", "objectives", "rewards", "rollouts"], "beartype.beartype")
