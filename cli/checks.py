"""Checks of flags that scripts share, made before any work is done."""

import math
import os
from pathlib import Path
from typing import Any

from errors import InputError


def check_positive(config: Any, *names: str, prefix: str = "") -> None:
    """Raises InputError where one of the numbers is 0 or below, infinite or NaN; None is chosen later. `prefix` is a
    group's (`lora.`)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{_flag(prefix, name)} must be above 0 and finite, not {value}")


def check_not_negative(config: Any, *names: str, prefix: str = "") -> None:
    """Raises InputError where one of the numbers is below 0, infinite or NaN."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise InputError(f"{_flag(prefix, name)} must be 0 or more and finite, not {getattr(config, name)}")


def check_fraction(config: Any, *names: str, prefix: str = "") -> None:
    """Raises InputError where one of the numbers is not in [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"{_flag(prefix, name)} must be from 0 to 1, not {getattr(config, name)}")


def check_temperature(temperature: float) -> None:
    """Raises InputError for a temperature that is 0, or counts as 0, where one is divided by it."""
    from rollouts.sampling import effective_temperature

    if not 0 < effective_temperature(temperature) < math.inf:
        raise InputError(f"--temperature must be above 0 and finite, not {temperature}; below 1e-30 it counts as 0")


def _flag(prefix: str, name: str) -> str:
    return f"--{prefix}{name.replace('_', '-')}"


def check_seed(seed: int) -> None:
    """Raises InputError for what no random generator takes."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must be from 0 to {2**32 - 1}, not {seed}")


def check_file(output: str, flag: str = "--output") -> None:
    """Raises InputError where no file can be written to what the flag names."""
    path = Path(output)
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"{flag} {output}: no file can be written there; name one in an existing folder")


def check_folder(output: str) -> None:
    """Raises InputError where no new folder can be made of --output."""
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--output {output} exists and is not empty; name a new folder")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--output {output}: no folder can be made in {parent}; name another")


def max_row_length(max_length: int | None, context: int) -> int:
    """Tokens of the longest row allowed: --max-length, or the model's context. Raises InputError for more than that."""
    if max_length is not None and not 2 <= max_length <= context:
        raise InputError(f"--max-length {max_length} must be from 2 to the model's context of {context} tokens")
    return max_length or context


def resolve_dtype(dtype: str) -> str:
    """`auto` made concrete for the platform; the same in all processes of a run, which all call this."""
    from sharding.exchange import decided
    from sharding.fastest_dtype import default_dtype

    return decided(default_dtype) if dtype == "auto" else dtype


def compute_in(dtype: str) -> str:
    """`dtype`, having JAX compute in it: in float32 alone, accelerators would round what they multiply to bfloat16
    (TPUs) or to TF32 (NVIDIA's, from Ampere on). What JAX_DEFAULT_MATMUL_PRECISION says comes before."""
    import jax

    if jax.default_backend() != "cpu":
        multiply_in(dtype)
    return dtype


def multiply_in(dtype: str) -> None:
    """See compute_in; of what is compiled for accelerators, wherever that is done."""
    import jax

    if dtype == "float32" and jax.config.jax_default_matmul_precision is None:
        jax.config.update("jax_default_matmul_precision", "highest")
