"""From a command line to a dataclass: a recipe becomes flags, tyro reads the flags, what it refuses is one line."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from data.sources import DataSource, parse_source
from errors import InputError

Config = TypeVar("Config")


def parse(config_type: type[Config], arguments: list[str], description: str,
          renamed: Mapping[str, str] = MappingProxyType({})) -> Config:
    """`config_type` from --config RECIPE.yaml, if given, and flags, which win. --help is made from the docstrings.

    `renamed` maps old names of flags to new ones. Raises InputError for an old name and for what tyro refuses.
    """
    import tyro

    arguments = replace_recipe(config_type, arguments, renamed)
    check_names(arguments, renamed)
    description += "\n\n--config RECIPE.yaml reads any of these flags from a file; flags given beside it win."
    with _errors_in_one_line():
        return tyro.cli(config_type, args=arguments, description=description, registry=_data_flags())


def parse_recipe(config_type: type[Config], recipe: Path, **flags: Any) -> Config:
    """`config_type` from a recipe, and from `flags` (by their names in Python) that are not None, which win."""
    given = {name: value for name, value in flags.items() if value is not None}
    return parse(config_type, ["--config", str(recipe), *flatten(config_type, given)], "")


def replace_recipe(config_type: type, arguments: list[str], renamed: Mapping[str, str]) -> list[str]:
    """The arguments with --config RECIPE.yaml replaced by the recipe's flags, which come first, so that others win."""
    for place, argument in enumerate(arguments):
        before, after = arguments[:place], arguments[place + 1 :]
        if argument.startswith("--config="):
            return read_recipe(config_type, Path(argument.removeprefix("--config=")), renamed) + before + after
        if argument == "--config":
            if not after:
                raise InputError("--config needs the name of a YAML file")
            return read_recipe(config_type, Path(after[0]), renamed) + before + after[1:]
    return arguments


def read_recipe(config_type: type, path: Path, renamed: Mapping[str, str]) -> list[str]:
    """The flags in a YAML file. Raises InputError where it holds anything else."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a mapping of flags was expected, not {type(values).__name__}")
    return flatten(config_type, values, renamed, f"{path}: ")


def flatten(config_type: type, values: Mapping[str, Any], renamed: Mapping[str, str] = MappingProxyType({}),
            where: str = "", prefix: str = "") -> list[str]:
    """["--lora.rank=16", ...] of {"lora": {"rank": 16}, ...}; names with - or _. A list is a flag of several values.
    Raises InputError, beginning with `where`, for an unknown name, and for one that is `renamed`."""
    kinds, arguments = _kinds(config_type), []
    for key, value in values.items():
        name = str(key).replace("_", "-")
        check_names([f"--{prefix}{name}"], renamed)
        if (field := name.replace("-", "_")) not in kinds:
            raise InputError(f"{where}unknown key {prefix + str(key)!r}; known are {', '.join(kinds)}")
        kind, flag = kinds[field], f"--{prefix}{name}"
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            arguments += flatten(kind, value, renamed, where, f"{prefix}{name}.")
        elif kind is bool and isinstance(value, bool):
            arguments.append(flag if value else f"--{prefix}no-{name}")
        elif isinstance(value, list) and len(value) != 1:
            arguments += [flag, *map(_as_text, value)]
        else:  # what follows = may begin with a hyphen
            arguments.append(f"{flag}={_as_text(value[0] if isinstance(value, list) else value)}")
    return arguments


def _kinds(config_type: type) -> dict[str, Any]:
    """Field -> its type; those of a group whose flags have no prefix stand beside the others."""
    kinds = {}
    for name, kind in get_type_hints(config_type, include_extras=True).items():
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        kinds |= _kinds(plain) if plain is not kind else {name: plain}
    return kinds


def _as_text(value: Any) -> str:
    """A value as a flag has it; a source with columns as YAML on one line."""
    if isinstance(value, dict):
        return yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize).strip()
    return str(value)


def check_names(arguments: list[str], renamed: Mapping[str, str]) -> None:
    """Raises InputError for a flag that goes by a new name."""
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0].replace("_", "-")
        if argument.startswith("--") and name in renamed:
            raise InputError(f"--{name} is called --{renamed[name]} now; write that")


def _data_flags() -> Any:
    """Teaches tyro that a DataSource is written SOURCE or SOURCE@WEIGHT, or as YAML where columns are renamed."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    spec = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="SOURCE[@WEIGHT]", instance_from_str=lambda arguments: parse_source(arguments[0]),
        is_instance=lambda value: isinstance(value, DataSource), str_from_instance=lambda value: [value.source])
    registry.primitive_rule(lambda info: spec if info.type is DataSource else None)
    return registry


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Turns what tyro prints in a box before it exits into an InputError."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise InputError(_one_line(printed.getvalue())) from None
    sys.stderr.write(printed.getvalue())


def _one_line(box: str) -> str:
    """What a box says, without its frame, the help of flags (which is indented most) and the last paragraph."""
    lines = [line.strip("│") for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines() if line[:1] not in "╭╰"]
    text = "\n".join(line.strip() for line in lines if not line.startswith(" " * 9)).replace("\n\n", "\n")
    paragraphs = [" ".join(part.split()) for part in re.split(r"─{3,}", text)]
    kept = [part for part in paragraphs if part and not part.startswith(("Argument helptext", "For full helptext"))]
    return "; ".join(kept) + "; --help explains the flags"
