"""A recipe of curation: stages by name with their keys, and how much each may remove; checked before a row is read.

    max_removal: {default: 0.5, near_duplicates: 0.9}
    stages:
      - length: {min_tokens: 3, max_tokens: 512}
      - exact_duplicates: {}
      - my_package.my_module:my_stage: {threshold: 2}
"""

import difflib
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from curation.stages import Stage
from data.specs import load_function
from errors import InputError, as_json

STAGES = {
    "unreadable": "filters:unreadable",
    "language": "languages:language",
    "length": "filters:length",
    "exact_duplicates": "duplicates:exact_duplicates",
    "near_duplicates": "duplicates:near_duplicates",
    "contamination": "contamination:contamination",
    "malformed_chats": "chats:malformed_chats",
    "repetition": "repetition:repetition",
    "phrases": "phrases:phrases",
    "pii": "pii:pii",
    "quality": "scored:quality",
    "perplexity": "scored:perplexity",
    "instruction_difficulty": "scored:instruction_difficulty",
    "quantiles": "scored:quantiles",
    "semantic_duplicates": "diversity:semantic_duplicates",
    "k_centre": "diversity:k_centre",
    "cluster_balanced": "diversity:cluster_balanced",
    "sample": "samples:sample",
    "best_of": "choose:best_of",
    "rejection_sampling": "choose:rejection_sampling",
    "pairs": "choose:pairs",
    "labels": "choose:labels",
    "difficulty": "choose:difficulty",
    "mix": "mixing:mix",
    "shuffle": "mixing:shuffle",
}
"""name in a recipe -> module and function of what makes the stage; package.module:function names one of yours"""
DEFAULT_MAX_REMOVAL = 0.5
GIVEN = ("folder", "spread")
"""arguments that a maker is given by the run and that no recipe names: a folder of the stage's own, which stays, and
what spreads work over processes (runners.Spread), or None"""


class Step(NamedTuple):
    """A stage as a recipe has it."""

    name: str
    keys: dict[str, Any]
    max_removal: float
    """share of a source's rows that it may remove"""
    label: str
    """what files of it are called: its name, from the second time on with a number"""

    @property
    def maker(self) -> Any:
        return load_maker(self.name)

    def make(self, folder: Path, spread: Any = None) -> Stage:
        """Raises InputError, naming the stage, for values that make no sense."""
        taken = inspect.signature(self.maker).parameters
        given = {name: value for name, value in (("folder", folder), ("spread", spread)) if name in taken}
        try:
            stage = self.maker(**self.keys, **given)
        except InputError as error:
            raise InputError(f"stage {self.name}: {error}") from None
        if not callable(stage):
            raise InputError(f"stage {self.name}: its function gives {stage!r}, not a stage: a function of "
                             f"rows")
        return stage


class Recipe(NamedTuple):
    """What a recipe's file says."""

    steps: list[Step]

    @property
    def drops_unreadable(self) -> bool:
        return self.steps[0].name == "unreadable"

    def as_written(self) -> list[dict[str, Any]]:
        """The stages in plain JSON, for a profile or a card."""
        return [{step.name: step.keys} for step in self.steps]


def read_recipe(path: Path) -> Recipe:
    """Raises InputError for what is no recipe, a stage or a key that does not exist, and a value of another kind."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--stages {path}: not readable as YAML ({' '.join(str(error).split())[:150]})") from None
    try:
        return parse_recipe(found)
    except InputError as error:
        raise InputError(f"--stages {path}: {error}") from None


class Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parse_recipe(found: Any) -> Recipe:
    """The recipe of a YAML file's value. Raises InputError as read_recipe."""
    if not isinstance(found, dict) or not isinstance(found.get("stages"), list) or not found["stages"]:
        raise InputError("a recipe is a mapping with a list of stages: {stages: [{length: {max_tokens: 512}}]}")
    _known(found, ("stages", "max_removal"), "key")
    steps = []
    for number, entry in enumerate(found["stages"], 1):
        name, keys = _read_entry(entry, number)
        count = sum(step.name == name for step in steps) + 1
        label = name.replace(":", ".") if count == 1 else f"{name.replace(':', '.')}_{count}"
        steps.append(Step(name, _checked(name, keys), 0.0, label))
    late = next((number for number, step in enumerate(steps, 1) if step.name == "unreadable" and number > 1), None)
    if late:
        raise InputError(f"stage {late} is unreadable, which must be the first: no other is given what it drops")
    bounds = _read_bounds(found.get("max_removal"), [step.name for step in steps])
    return Recipe([step._replace(max_removal=bounds.get(step.name, bounds["default"])) for step in steps])


def load_maker(name: str) -> Any:
    """The function that makes a stage. Raises InputError for an unknown name."""
    if ":" in name:
        return load_function(name)
    _known([name], tuple(STAGES), "stage", "; or package.module:function")
    return load_function(f"curation.{STAGES[name]}")


def _read_entry(entry: Any, number: int) -> tuple[str, dict[str, Any]]:
    """(name, keys) of a stage: {name: {key: value}}, or the name alone."""
    entry = {entry: {}} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or len(entry) != 1:
        raise InputError(f"stage {number} is {as_json(entry)[:80]}; each is one name with its keys, as in "
                         f"- length: {{max_tokens: 512}}")
    name, keys = next(iter(entry.items()))
    keys = {} if keys is None else keys
    if not isinstance(name, str) or not isinstance(keys, dict):
        raise InputError(f"stage {number}, {name}: keys are {as_json(keys)[:80]}, not a mapping such as "
                         f"{{max_tokens: 512}}")
    return name, dict(keys)


def _checked(name: str, keys: Mapping[Any, Any]) -> dict[str, Any]:
    """The keys as a maker's arguments. Raises InputError for one that it does not take, lacks, or has of another kind.
    """
    parameters = {key: each for key, each in inspect.signature(load_maker(name)).parameters.items() if key not in GIVEN}
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        _known(keys, tuple(parameters), f"key of stage {name}")
    missing = [key for key, each in parameters.items() if each.default is each.empty and key not in keys
               and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if missing:
        raise InputError(f"stage {name} needs {', '.join(missing)}; give it as a key")
    try:
        hints = typing.get_type_hints(load_maker(name))
    except NameError as error:
        raise InputError(f"stage {name}: an annotation of its function cannot be read ({error}); mend it") from None
    return {key: fit(f"stage {name}: {key}", value, hints.get(key, Any)) for key, value in keys.items()}


def fit(what: str, value: Any, kind: Any) -> Any:
    """The value as an argument of this kind: a whole number where a float is asked for, a list where a tuple is. Raises
    InputError, beginning with `what`, for another kind."""
    fitted = _fit(value, kind)
    if fitted is NO_FIT:
        raise InputError(f"{what} is {as_json(value)[:80]}; it takes {_described(kind)}")
    return fitted


NO_FIT = object()


def _fit(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return next((fitted for each in arguments if (fitted := _fit(value, each)) is not NO_FIT), NO_FIT)
    if origin is typing.Literal:
        return value if value in arguments else NO_FIT
    if origin is tuple:
        fitted = [_fit(each, arguments[0]) for each in value] if isinstance(value, list | tuple) else [NO_FIT]
        return NO_FIT if NO_FIT in fitted else tuple(fitted)
    if origin is dict:
        sound = isinstance(value, dict) and all(isinstance(key, arguments[0]) for key in value)
        fitted = {key: _fit(each, arguments[1]) for key, each in value.items()} if sound else {"": NO_FIT}
        return NO_FIT if any(each is NO_FIT for each in fitted.values()) else fitted
    if kind is float and type(value) in (int, float):
        return float(value) if abs(value) <= sys.float_info.max else NO_FIT  # which NaN is not
    return value if type(value) is kind or (kind is type(None) and value is None) else NO_FIT


def _described(kind: Any) -> str:
    """A kind in words: "a whole number", "a list of strings", "en or de"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, arguments))
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return f"a list, each {_described(arguments[0])}"
    if origin is dict:
        return f"a mapping, each value {_described(arguments[1])}"
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false",
            type(None): "null"}.get(kind, str(kind))


def _read_bounds(found: Any, names: list[str]) -> dict[str, float]:
    """max_removal by the stage's name, "default" among them."""
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise InputError(f"max_removal is {as_json(found)[:80]}; it takes a mapping such as {{default: 0.5}}")
    _known(found, ("default", *dict.fromkeys(names)), "stage in max_removal")
    for name, share in found.items():
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise InputError(f"max_removal: {name} is {as_json(share)}; it takes a share from 0 to 1")
    return {"default": DEFAULT_MAX_REMOVAL} | {name: float(share) for name, share in found.items()}


def _known(names: Any, known: tuple[str, ...], what: str, more: str = "") -> None:
    """Raises InputError for a name that is not known, with the nearest one that is."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            meant = f"; {near[0]} is meant?" if near else ""
            raise InputError(f"no {what} is called {name!r}{meant} Known are {', '.join(known) or 'none'}{more}")
