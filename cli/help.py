"""What --help says of a flag, and in which order: what must be given, what is often changed, the rest, then groups."""

import ast
import dataclasses
import functools
import inspect
import textwrap
from typing import Any, get_type_hints

from cli.values import default

ORDER = ("model", "tokenizer", "data", "prompt", "rewards", "tasks", "output_dir", "output", "max_steps", "num_epochs",
         "max_tokens", "batch_size", "learning_rate", "eval_data", "max_length", "packing", "loss", "objective", "beta",
         "group_size", "max_new_tokens", "temperature", "num_samples", "save_every", "eval_every", "seed",
         "lora", "algorithm", "critic", "sampling", "rollouts", "optimizer", "mesh", "evaluate")
"""flags of any script that come first, those among them that must be given before the others"""


def ordered_fields(config_type: type) -> list[Any]:
    """The fields of a dataclass of flags, in the order of --help."""
    return sorted(dataclasses.fields(config_type), key=_rank)


def _rank(field: Any) -> tuple[bool, bool, int]:
    value, place = default(field), ORDER.index(field.name) if field.name in ORDER else len(ORDER)
    return dataclasses.is_dataclass(value), value is not dataclasses.MISSING, place


def text_of(config_type: type, name: str) -> str:
    """The docstring of a field, as one paragraph: of the class that declares it last."""
    return next((texts[name] for kind in config_type.__mro__ if name in (texts := _texts(kind))), "")


@functools.cache
def _texts(kind: type) -> dict[str, str]:
    """Of the fields that a class declares itself: the string that stands behind each."""
    if not dataclasses.is_dataclass(kind):
        return {}
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    return {field.target.id: " ".join(text.value.value.split()) for field, text in zip(body, body[1:])
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)}


def struct_rule(info: Any) -> Any:
    """Teaches tyro all of this, for every group of flags."""
    import tyro

    if not dataclasses.is_dataclass(info.type):
        return None
    hints = get_type_hints(info.type, include_extras=True)
    values = info.default if isinstance(info.default, info.type) else None
    fields = tuple(tyro.constructors.StructFieldSpec(
        name=field.name, type=hints[field.name], default=_default(field, values),
        helptext=functools.partial(text_of, info.type, field.name)) for field in ordered_fields(info.type))
    return tyro.constructors.StructConstructorSpec(instantiate=info.type, fields=fields)


def _default(field: Any, values: Any) -> Any:
    import tyro

    value = default(field) if values is None else getattr(values, field.name)
    return tyro.MISSING_NONPROP if value is dataclasses.MISSING else value
