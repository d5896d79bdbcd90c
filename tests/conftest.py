"""Eight simulated devices for every test, jaxtyping's shapes checked at run time."""

import os

from simulated import environment

os.environ |= environment(8)

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["models", "objectives", "rollouts"], "beartype.beartype")
