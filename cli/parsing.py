"""From a command line to a dataclass: a recipe becomes flags, tyro reads the flags, what it refuses is one line."""

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from cli.help import struct_rule
from cli.trl_names import TRL
from cli.values import group_name
from data.sources import DataSource, parse_source
from errors import InputError, shown

Config = TypeVar("Config")

OF_NONE = re.compile(r"no type matching \{None\}\|\S+ could be instantiated from .*? - <class '(?!NoneType)\w+'>: ")
"""where a flag may be none, what tyro says before the error that counts"""

ROOT = Path(__file__).resolve().parents[1]
"""of this repository"""

NO_FLAG = "\0"
"""before a value of a recipe's that begins with a hyphen and is no number: tyro would take it for a flag"""


def parse(config_type: type[Config], arguments: list[str], description: str,
          renamed: Mapping[str, str] = MappingProxyType({})) -> Config:
    """`config_type` from --config RECIPE.yaml, if given, and flags, which win. --help is made from the docstrings.

    `renamed` maps old names of flags to new ones. Raises InputError for an old name and for what tyro refuses.
    """
    import tyro

    recipe, arguments = take_value(arguments, "--config", "the name of a YAML file")
    check_names(arguments, renamed, _kinds(config_type))
    arguments = [*(read_recipe(config_type, Path(recipe), renamed) if recipe else ()), *arguments]
    description += ("\n\n--config RECIPE.yaml reads any of these flags from a file; flags given beside it win. --debug "
                    "shows the traceback of an error, too. --compilation-cache DIR keeps compiled programs there, off "
                    "nowhere; by default they are kept in the user's cache folder.")
    with _errors_in_one_line(f"with {recipe}: " if recipe else ""):
        return tyro.cli(config_type, prog=invocation(), args=arguments, description=description,
                        registry=_constructors())


def is_script() -> bool:
    """Whether this process was started as one of scripts/."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return file is not None and Path(file).resolve().parent == ROOT / "scripts"


def invocation(name: str | None = None) -> str:
    """How this script, or another one of that name, is started from here: by its path, where this one was."""
    spec = sys.modules["__main__"].__spec__
    if spec is None and is_script():
        path = Path(sys.argv[0])
        return f"python {path if name is None else path.with_name(f'{name}.py')}"
    return f"python -m scripts.{name}" if name else f"python -m {spec.name if spec else 'scripts'}"


def from_here(path: str) -> str:
    """A path of this repository as one names it from the working folder."""
    return os.path.relpath(ROOT / path)


def script_path(name: str) -> str:
    """Another script, for the Python that runs this one."""
    return str(ROOT / "scripts" / f"{name}.py")


def parse_recipe(config_type: type[Config], recipe: str | Path, **flags: Any) -> Config:
    """`config_type` from a recipe, and from `flags` (by their names in Python) that are not None, which win."""
    given = {name: value for name, value in flags.items() if value is not None}
    return parse(config_type, ["--config", str(recipe), *as_flags(config_type, given)], "")


def take_value(arguments: list[str], flag: str, what: str) -> tuple[str | None, list[str]]:
    """The value of a flag that is no field of a script's, if it is given, and the other arguments. Raises InputError
    for a flag without value, which is `what`, and for one given twice."""
    if sum(argument == flag or argument.startswith(f"{flag}=") for argument in arguments) > 1:
        raise InputError(f"{flag} is given more than once; give it once")
    for place, argument in enumerate(arguments):
        before, after = arguments[:place], arguments[place + 1 :]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}="), before + after
        if argument == flag:
            if not after or after[0].startswith("--"):
                raise InputError(f"{flag} needs {what}")
            return after[0], before + after[1:]
    return None, arguments


def read_recipe(config_type: type, path: Path, renamed: Mapping[str, str]) -> list[str]:
    """The flags in a YAML file. Raises InputError where it holds anything else."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a mapping of flags was expected, not {type(values).__name__}")
    return as_flags(config_type, values, renamed, f"{path}: ")


def as_flags(config_type: type, values: Mapping[str, Any], renamed: Mapping[str, str] = MappingProxyType({}),
             where: str = "", prefix: str = "") -> list[str]:
    """["--lora.rank=16", ...] of {"lora": {"rank": 16}, ...}; names with - or _. A list is a flag of several values.
    Raises InputError, beginning with `where`, for an unknown name, a `renamed` one, and a group that is no mapping."""
    kinds, arguments = _kinds(config_type), []
    for key, value in values.items():
        name = str(key).replace("_", "-")
        flag, kind = f"{prefix}{name}", kinds.get(name.replace("-", "_"))
        check_names([f"--{flag}"], renamed, () if prefix else kinds, where)
        if kind is None:
            raise InputError(f"{where}unknown key {prefix + str(key)!r}; known are {', '.join(kinds)}")
        if dataclasses.is_dataclass(kind) and kind is not DataSource:
            if not isinstance(value, dict):
                raise InputError(f"{where}{flag}: a mapping of flags was expected, not {shown(value)}")
            arguments += as_flags(kind, value, renamed, where, f"{flag}.")
        else:
            arguments += _as_flag(flag, kind, value, where)
    return arguments


def _as_flag(flag: str, kind: Any, value: Any, where: str) -> list[str]:
    """A flag with its value or values. Raises InputError for true and false where something else is expected."""
    if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
        raise InputError(f"{where}{flag}: {shown(value)}, as YAML reads it, is no value of this flag; quote a word")
    if kind is bool and isinstance(value, bool):
        group, _, name = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{group}{'.' * bool(group)}no-{name}"]
    if isinstance(value, list):
        return [f"--{flag}", *map(_as_text, value)]
    return [f"--{flag}", _as_text(value)]


def _kinds(config_type: type) -> dict[str, Any]:
    """Field -> its type; those of a group whose flags have no prefix (Annotated so) stand beside the others."""
    kinds = {}
    for field, kind in get_type_hints(config_type, include_extras=True).items():
        plain, name = get_args(kind)[0] if get_origin(kind) is Annotated else kind, group_name(field, kind)
        kinds |= _kinds(plain) if dataclasses.is_dataclass(plain) and not name else {name or field: plain}
    return kinds


def _as_text(value: Any) -> str:
    """A value as a flag has it; a source with columns as YAML on one line. A hyphen in front begins no flag."""
    if isinstance(value, dict):
        value = {name: _from_root(each) if isinstance(each, str) else each for name, each in value.items()}
        return yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize).strip()
    text = _from_root(str(value))
    return NO_FLAG + text if re.match(r"-(?![\d.])", text) else text


def _from_root(text: str) -> str:
    """A recipe's ${root}/ is this repository's folder, wherever one is."""
    return text.replace("${root}/", "" if from_here(".") == "." else f"{from_here('.')}/")


def check_names(arguments: list[str], renamed: Mapping[str, str], known: Collection[str], where: str = "") -> None:
    """Raises InputError, beginning with `where`, for a flag that goes by a new name, and for one of TRL's or
    transformers' that is none of the `known`, a script's own."""
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0].replace("_", "-")
        for old in (name, name.removeprefix("no-")):
            if argument.startswith("--") and old in renamed:
                raise InputError(f"{where}--{old} is called --{renamed[old]} now; write that")
            if argument.startswith("--") and old in TRL and old.replace("-", "_") not in known:
                raise InputError(f"{where}--{old} is a flag of TRL or transformers; here: {TRL[old]} "
                                 f"(docs/from_trl.md)")


def _constructors() -> Any:
    """Teaches tyro that a DataSource is written SOURCE or SOURCE@WEIGHT, or as YAML where columns are renamed; and what
    NO_FLAG is."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    spec = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="SOURCE[@WEIGHT]",
        instance_from_str=lambda arguments: parse_source(arguments[0].removeprefix(NO_FLAG)),
        is_instance=lambda value: isinstance(value, DataSource), str_from_instance=lambda value: [value.source])
    plain = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="STR", instance_from_str=lambda arguments: arguments[0].removeprefix(NO_FLAG),
        is_instance=lambda value: isinstance(value, str), str_from_instance=lambda value: [value])
    registry.primitive_rule(lambda info: {DataSource: spec, str: plain}.get(info.type))
    registry.struct_rule(struct_rule)
    return registry


@contextlib.contextmanager
def _errors_in_one_line(where: str) -> Iterator[None]:
    """Turns what tyro prints in a box before it exits into an InputError that begins with `where`."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise InputError(where + _one_line(printed.getvalue())) from None
    sys.stderr.write(printed.getvalue())


def _one_line(box: str) -> str:
    """The text of a box, without its frame, the help of flags (which is indented most) and the last paragraph. Where
    output is not UTF-8 the frame is hyphens between paragraphs, the first of which is the title."""
    lines = [line.strip("│") for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines() if line[:1] not in "╭╰"]
    text = "\n".join(line.strip() for line in lines if not line.startswith(" " * 9)).replace("\n\n", "\n")
    paragraphs = [" ".join(part.split()) for part in re.split(r"(?m)^[─-]{3,}$", text)]
    paragraphs = paragraphs if "╭" in box else paragraphs[1:]
    kept = [part for part in paragraphs if part and not part.startswith(("Argument helptext", "For full helptext"))]
    return OF_NONE.sub("", "; ".join(kept)) + "; --help explains the flags"
