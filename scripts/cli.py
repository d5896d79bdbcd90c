"""What every script's command line shares: typed flags, --config recipe.yaml, one-line errors."""

import contextlib
import dataclasses
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from data.sources import DataSource, parse_source
from data.specs import load_function  # noqa: F401 - scripts take it from here
from errors import InputError, Stopped
from sharding.hosts import lost_peers

Config = TypeVar("Config")


def run(main: Callable[[Any], None], config_type: type, description: str) -> None:
    """Parses the command line into `config_type` and calls `main`.

    InputError becomes one line and exit status 1, a stop that was asked for one line and 0.
    """
    keep_memory()
    try:
        config = parse(config_type, sys.argv[1:], description)
        with lost_peers():
            main(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Stopped as stop:
        print(stop, file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


MALLOC = ("glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:"
          "glibc.malloc.arena_max=1")  # other arenas give their memory back all the same


def keep_memory() -> None:
    """Starts `python -m scripts.NAME` over with a malloc that keeps freed memory and asks for huge pages (Linux).

    XLA's CPU backend takes gigabytes of fresh memory at every step; mapping them page by page costs a quarter of a
    training step on a CPU (docs/measured.md). glibc reads its settings at start only. Nothing is done where
    GLIBC_TUNABLES is set already.
    """
    as_script = sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("scripts.")
    if as_script and sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": MALLOC})


def parse(config_type: type[Config], arguments: list[str], description: str) -> Config:
    """`config_type` from --config recipe.yaml, if given, and flags, which win. --help is made from the docstrings."""
    import tyro

    recipe, arguments = _take_recipe(arguments)
    description += "\n\n--config RECIPE.yaml reads any of these flags from a file; flags given beside it win."
    default = {} if recipe is None else {"default": read_recipe(config_type, recipe)}
    return tyro.cli(config_type, args=arguments, description=description, registry=_data_flags(), **default)


def _data_flags() -> Any:
    """Teaches tyro that a DataSource is written SOURCE or SOURCE@WEIGHT."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    spec = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="SOURCE[@WEIGHT]", instance_from_str=lambda arguments: parse_source(arguments[0]),
        is_instance=lambda value: isinstance(value, DataSource), str_from_instance=lambda value: [value.source])
    registry.primitive_rule(lambda info: spec if info.type is DataSource else None)
    return registry


def _take_recipe(arguments: list[str]) -> tuple[Path | None, list[str]]:
    for place, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return Path(argument.removeprefix("--config=")), arguments[:place] + arguments[place + 1 :]
        if argument == "--config":
            if place + 1 == len(arguments):
                raise InputError("--config needs the name of a YAML file")
            return Path(arguments[place + 1]), arguments[:place] + arguments[place + 2 :]
    return None, arguments


def read_recipe(config_type: type[Config], path: Path) -> Config:
    """`config_type` from a YAML file of flags."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    return build(config_type, values or {}, str(path))


def build(config_type: type[Config], values: Any, where: str) -> Config:
    """A (nested) dataclass from a mapping; keys are flag names, with - or _. Missing ones must be given as flags."""
    import tyro

    if not isinstance(values, dict):
        raise InputError(f"{where}: a mapping of flags was expected, not {type(values).__name__}")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    hints, fields = get_type_hints(config_type), {field.name: field for field in dataclasses.fields(config_type)}
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(fields)}")
    made = {}
    for name, field in fields.items():
        if name in values:
            made[name] = _value(hints[name], values[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            made[name] = tyro.MISSING
    try:
        return config_type(**made)
    except ValueError as error:  # of a dataclass that checks itself
        raise InputError(f"{where}: {error}") from None


def _value(kind: Any, value: Any, where: str) -> Any:
    if kind is DataSource and isinstance(value, str):
        return parse_source(value)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    kinds = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    if float in kinds and type(value) in (str, int):  # YAML reads 2e-4 as a string
        try:
            return float(value)
        except ValueError:
            raise InputError(f"{where}: {value!r} is no number") from None
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise InputError(f"{where}: {value!r} is none of {', '.join(get_args(kind))}")
    if get_origin(kind) is tuple:
        return _values(get_args(kind)[0], value, where)
    allowed = get_args(kind) if get_origin(kind) is UnionType else (get_origin(kind) or kind,)
    if get_origin(kind) is not Literal and type(value) not in allowed:
        names = " or ".join("nothing" if each is type(None) else each.__name__ for each in allowed)
        raise InputError(f"{where}: {names} expected, not {value!r}")
    return value


def _values(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    """A list of values; one source needs no list around it."""
    if kind is DataSource and isinstance(value, str | dict):
        value = [value]
    if not isinstance(value, list):
        raise InputError(f"{where}: a list expected, not {value!r}")
    return tuple(_value(kind, each, f"{where}[{place}]") for place, each in enumerate(value))


def say(text: str) -> None:
    """Prints a line, once for all processes of a run."""
    import jax

    if jax.process_index() == 0:
        print(text)


def check_output(output: str) -> None:
    """Raises InputError where a file cannot be written there, before the work and not after it."""
    path = Path(output)
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"--output {output}: no file can be written there; name one in an existing folder")


@contextlib.contextmanager
def output_lines(output: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a JSON line; the file appears under its name only when all are written."""
    partial = Path(output + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file)
    os.replace(partial, output)


def check_folder(output: str) -> None:
    """Raises InputError where a new folder cannot be written, before the work and not after it."""
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--output {output} exists and is not empty; name a new folder")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--output {output}: no folder can be made in {parent}; name another")


@contextlib.contextmanager
def whole_folder(output: str) -> Iterator[Path]:
    """A folder to write into, beside `output`; it takes that name when all is written."""
    folder = Path(output)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=folder.name, dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        partial = Path(scratch) / "partial"
        partial.mkdir()
        yield partial
        os.replace(partial, folder)  # an empty folder is replaced


def check_positive(config: Any, *names: str) -> None:
    """Raises InputError where one of the numbers is 0 or below, infinite or NaN."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be above 0 and finite, not {getattr(config, name)}")


def check_not_negative(config: Any, *names: str) -> None:
    """Raises InputError where one of the numbers is below 0, infinite or NaN."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be 0 or more and finite, not {getattr(config, name)}")


def check_seed(seed: int) -> None:
    """Raises InputError for what no random generator takes."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must be from 0 to {2**32 - 1}, not {seed}")


def row_length(asked: int | None, context: int) -> int:
    """Longest row allowed: the model's context, or less. Raises InputError for more."""
    if asked is not None and not 2 <= asked <= context:
        raise InputError(f"--max-length {asked} must be from 2 to the model's context of {context} tokens")
    return asked or context


def resolve_dtype(dtype: str) -> str:
    """`auto` made concrete for the platform."""
    from models.config import default_dtype

    return default_dtype() if dtype == "auto" else dtype
