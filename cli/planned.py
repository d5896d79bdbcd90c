"""The flags of a script whose step is planned, not run: nothing is read of data, nothing is written."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from cli.checks import multiply_in
from cli.flags import OnlineFlags, check_flags, check_online_flags
from cli.microbatches import MOST_TOKENS
from cli.parsing import take_value
from cli.values import check_values
from errors import InputError

STAND_INS = {"data": "none.jsonl", "output_dir": "none", "rewards": "math", "max_steps": "1000"}
"""of flags that a script needs and its step does not depend on"""
LANES = 128
"""positions from which on attention is the TPU's kernel (models.attention)"""
DURATIONS = {"max_steps", "num_epochs", "max_tokens"}


def with_stand_ins(config_type: type, arguments: list[str]) -> list[str]:
    """The arguments with STAND_INS for those that are not given, in the recipe neither."""
    recipe, _ = take_value(arguments, "--config", "the name of a YAML file")
    given = {argument.removeprefix("--").partition("=")[0].replace("-", "_") for argument in arguments
             if argument.startswith("--")} | _names(recipe)
    given |= {"max_steps"} if given & DURATIONS else set()
    absent = [name for name in STAND_INS if name in get_type_hints(config_type) and name not in given]
    return [*(part for name in absent for part in (f"--{name.replace('_', '-')}", STAND_INS[name])), *arguments]


def _names(recipe: str | None) -> set[str]:
    """Keys of a recipe; none of one that cli.parsing will refuse."""
    try:
        values = yaml.safe_load(Path(recipe).read_text()) if recipe else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return set()
    return {str(name).replace("-", "_") for name in values} if isinstance(values, dict) else set()


def check_planned(config: Any, check: Callable[[Any], None]) -> Any:
    """The flags as a run on TPUs has them. Raises InputError where the script would before it reads anything."""
    check_values(config)
    (check_online_flags if isinstance(config, OnlineFlags) else check_flags)(config)
    check(config)
    chosen = {"num_microbatches": 1, "microbatch_tokens": MOST_TOKENS, "max_steps": 1000}
    changes = {name: value for name, value in chosen.items() if getattr(config, name, value) is None}
    return dataclasses.replace(config, dtype="bfloat16" if config.dtype == "auto" else config.dtype, **changes)


def on_tpus(config: Any) -> Any:
    """In the process that compiles, whose JAX is the CPU's: what it would choose by platform, as TPUs choose it."""
    multiply_in(config.dtype)
    kernel = "flash" if (getattr(config, "max_length", None) or LANES) >= LANES else "xla"
    return dataclasses.replace(config, attention=kernel) if config.attention == "auto" else config


NOT_COMPILED = ("data", "eval_data", "output_dir", "rewards")
"""flags that the programs do not depend on"""


def known_by(config: Any) -> dict[str, Any]:
    """What the programs depend on: flags, and what the names among them stand for now."""
    from training.runs import open_config

    flags = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_COMPILED}
    return {"flags": flags, "objective": source_of(getattr(config, "objective", None)),
            "model": dataclasses.asdict(open_config(config.model)) if config.model else None}


def source_of(name: str | None) -> str | None:
    """The source of a function that a flag names, with the rest of its file."""
    import inspect

    from data.specs import load_function

    file = inspect.getsourcefile(inspect.unwrap(load_function(name))) if name else None
    return Path(file).read_text() if file else None


def job_of(config: Any, topology: str, slices: int, group: int = 1) -> Any:
    """What --search looks for settings of; `group` rows are a record."""
    from cli.experiment import lora_of
    from cli.shapes import architecture_of, row_length
    from planning.search import Job, devices_in
    from training.runs import open_config

    if not hasattr(config, "num_microbatches"):
        raise InputError("--search tries --num-microbatches, which this script has not; plan it with other "
                         "--microbatch-tokens, --remat and --mesh")
    model = open_config(config.model) if config.model else architecture_of(config)
    length = row_length(config, model.max_length)
    return Job(dataclasses.replace(model, dtype=config.dtype), lora_of(config), config.optimizer.name,
               group * config.batch_size, length, devices_in(topology, slices), slices)


def with_choice(config: Any, choice: Any) -> Any:
    """The flags with what a search has chosen."""
    rules = [rule for rule in config.mesh.rules if not rule.replace(" ", "").startswith("residual_length=")]
    mesh = dataclasses.replace(config.mesh, **dict(choice.mesh), rules=(*rules, *choice.rules))
    return dataclasses.replace(config, num_microbatches=choice.num_microbatches, remat=choice.remat, mesh=mesh)


def recipe_of(config: Any, title: str) -> str:
    """The flags that are not the defaults, as YAML for --config; not those that STAND_INS stand for."""
    values = _changed(config, type(config))
    for name in (*NOT_COMPILED, "max_steps"):
        values.pop(name, None)
    return f"# {title}\n" + yaml.safe_dump(values, sort_keys=False)


def _changed(config: Any, config_type: type) -> dict[str, Any]:
    """Field -> value, of groups those of their fields, that differ from the defaults."""
    found = {}
    for field in dataclasses.fields(config_type):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = _changed(value, type(value))
        elif value == field.default:
            continue
        if value not in ({}, None):
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found
