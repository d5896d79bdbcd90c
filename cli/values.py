"""Values of flags, whatever the script: numbers that fit their type, and no setting that nothing reads."""

import dataclasses
import functools
import math
from typing import Annotated, Any, NamedTuple, get_origin, get_type_hints

from data.sources import DataSource
from errors import InputError, shown

INT32 = 2**31 - 1
"""steps, rows and tokens of one are int32 on a device; a field's metadata may name another `largest`"""
FLOAT32 = 3.4028234e38
TINY = 1.1754944e-38
"""the least number that float32 holds in full; devices take what is smaller for 0"""


class Flag(NamedTuple):
    """One flag of a script."""

    name: str
    """as it is typed, without its hyphens"""
    field: Any
    value: Any


def check_values(config: Any) -> None:
    """Raises InputError, naming the flag, for a number that its type does not hold, for one that needs values and has
    none, and for a setting that was changed and that nothing reads beside the others."""
    for flag in walk(config).values():
        if flag.value == () and default(flag.field) is dataclasses.MISSING:
            raise InputError(f"--{flag.name} has no value; give one or several")
        if isinstance(flag.value, int | float) and not isinstance(flag.value, bool):
            _check_number(*flag)
    _check_read(config)


def walk(config: Any, prefix: str = "", path: str = "") -> dict[str, Flag]:
    """`lora.rank` -> its flag: all of a script's, or of one group of them."""
    flags, groups = {}, _groups(config, prefix)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in groups:
            flags |= walk(value, groups[field.name], f"{path}{field.name}.")
        else:
            flags[path + field.name] = Flag(prefix + field.name.replace("_", "-"), field, value)
    return flags


def _groups(config: Any, prefix: str) -> dict[str, str]:
    """Fields that are groups of flags -> the prefix of these."""
    groups = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, DataSource):
            name = group_name(field.name, _hints(type(config))[field.name])
            groups[field.name] = f"{prefix}{name.replace('_', '-')}{'.' * bool(name)}"
    return groups


def group_name(field: str, kind: Any) -> str:
    """What a group's flags have before their dot: the field's name, or the one that it is Annotated with
    (tyro.conf.arg), which may be none."""
    return getattr(kind.__metadata__[0], "name", "") if get_origin(kind) is Annotated else field


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _check_number(name: str, field: Any, value: int | float) -> None:
    largest = field.metadata.get("largest", INT32) if isinstance(value, int) else FLOAT32
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"--{name} must be a finite number, not {value}")
    if abs(value) > largest:
        raise InputError(f"--{name} {value} is too large for its type; give {largest} at the most")
    if 0 < abs(value) < TINY and not field.metadata.get("counts_as_0"):
        raise InputError(f"--{name} {value} is 0 in float32; give 0, or {TINY} at the least")


def _check_read(config: Any, prefix: str = "") -> None:
    """A group's method `unread` maps names of its fields, or of fields of groups inside it (`algorithm.kl`), to the
    setting in which they say nothing: there, none may differ from its default."""
    flags = walk(config, prefix)
    for path, reason in getattr(config, "unread", dict)().items():
        name, field, value = flags[path]
        if value != default(field):
            raise InputError(f"--{name} {shown(value)}: nothing reads it {reason}; leave it out")
    for name, its_prefix in _groups(config, prefix).items():
        _check_read(getattr(config, name), its_prefix)


def defaults(config: Any) -> dict[str, Any]:
    """`lora.rank` -> 0, of all flags that have a default."""
    found = {path: default(flag.field) for path, flag in walk(config).items()}
    return {path: value for path, value in found.items() if value is not dataclasses.MISSING}


def default(field: Any) -> Any:
    """The value that a field has where none is given."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
