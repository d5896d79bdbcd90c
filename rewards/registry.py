"""Rewards by name: --rewards "math=1,overlong(max_length=512, cache=128)=0.5,package.module:function"."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args, get_origin

from data.specs import load_function, parse_spec, split_outside
from errors import InputError


class Weighted(NamedTuple):
    """A reward function, what it is called in logs, and what its values are multiplied by."""

    name: str
    weight: float
    function: Callable[..., Any]


PLAIN = (bool, int, float, str)
REWARDS = "rewards."
FACTORIES = {
    "math": "mathematics:make_math",
    "math_strict": "mathematics:make_math_strict",
    "math_format": "mathematics:make_math_format",
    "format": "text:make_format",
    "keywords": "text:make_keywords",
    "length": "text:make_length",
    "overlong": "text:make_overlong",
    "repetition": "text:make_repetition",
    "unit_tests": "unit_tests:make_unit_tests",
    "unit_tests_share": "unit_tests:make_unit_tests(share=True)",
    "programs": "programs:make_programs",
    "programs_share": "programs:make_programs(share=True)",
    "gym": "gym:make_gym",
    "gym_exact": "gym:make_gym_exact",
    "model": "learned:load_reward_model",
    "judge": "judge:make_judge",
}
"""name -> what makes the reward, given the arguments in the flag; NAME:X gives X as the first of them"""
KNOWN = ("math, math_strict, math_format, format(pattern=...), keywords, length(target=...), "
         "overlong(max_length=..., cache=...), repetition, unit_tests(isolation=strict|shared|auto, packages=[...]), "
         "unit_tests_share, programs, programs_share, gym:TASK, gym_exact:TASK, model:PATH_OR_ID, judge:URL, or "
         "package.module:function")


def load_rewards(text: str, **options: Any) -> tuple[Weighted, ...]:
    """The rewards that `NAME[(key=value, ...)][=WEIGHT][,...]` names, weights being 1 unless given.

    `options` (say timeout=10.0, layout=..., unsafe=True) go to those built-in ones that take them, where the text does
    not say otherwise. Raises InputError for an unknown name, arguments that a reward does not take, a weight that is no
    finite number, and a name given twice.
    """
    rewards = tuple(_load(entry.strip(), options) for entry in split_outside(text, ","))
    names = [reward.name for reward in rewards]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"rewards {text!r}: {twice} is given twice, and its values are logged by that name; give it "
                         f"once, with its weight")
    return rewards


def _load(entry: str, options: dict[str, Any]) -> Weighted:
    spec, weight = _split_weight(entry)
    name, keywords = parse_spec(spec)
    if not name:
        raise InputError(f"reward {entry!r}: names none; give {KNOWN}")
    return Weighted(name, weight, _function(name, spec, keywords, options))


def _split_weight(entry: str) -> tuple[str, float]:
    *names, weight = split_outside(entry, "=")
    if not names:
        return entry, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if entry.startswith("judge:") and "?" in entry.partition("=")[0]:
        raise InputError(f"reward {entry!r}: = stands before a weight; write judge(url='...') for a URL with a query")
    if not math.isfinite(number):
        raise InputError(f"reward {entry!r}: the weight {weight.strip()!r} is no finite number; write NAME=WEIGHT")
    return "=".join(names), number


def _function(name: str, spec: str, keywords: dict[str, Any], options: dict[str, Any]) -> Callable[..., Any]:
    kind, colon, rest = name.partition(":")
    if kind in FACTORIES:
        factory = load_function(REWARDS + FACTORIES[kind])
        return _make(name, factory, _behind_colon(name, factory, rest) | keywords if colon else keywords, options)
    if ":" not in name and "." not in name:
        raise InputError(f"no reward is called {name!r}; give {KNOWN}")
    return load_function(spec)


def _behind_colon(name: str, factory: Callable[..., Any], text: str) -> dict[str, Any]:
    """What stands behind the colon is the first argument of a factory that cannot do without it."""
    first = next(iter(inspect.signature(factory).parameters.values()), None)
    if first is None or first.default is not first.empty:
        raise InputError(f"reward {name!r}: {name.partition(':')[0]} takes nothing behind a colon; give {KNOWN}")
    return {first.name: text}


def _make(name: str, factory: Callable[..., Any], keywords: dict[str, Any], options: dict[str, Any]) -> Any:
    signature = inspect.signature(factory)
    keywords = {key: value for key, value in options.items() if key in signature.parameters} | keywords
    try:
        signature.bind(**keywords)
    except TypeError as error:
        takes = ", ".join(str(each) for each in signature.parameters.values())
        raise InputError(f"reward {name}: {error}; it takes ({takes})") from None
    return factory(**{key: _fitting(name, signature.parameters.get(key), value) for key, value in keywords.items()})


def _fitting(name: str, parameter: inspect.Parameter | None, value: Any) -> Any:
    """A value for a parameter (None: one of **); a whole number becomes a float where one is asked for. Raises
    InputError for a value of another kind than the parameter's annotation, where that is a simple one."""
    kind = parameter.annotation if parameter is not None else None
    if kind is float and type(value) is int:
        value = float(value)
    fits = value in get_args(kind) if get_origin(kind) is Literal else kind not in PLAIN or type(value) is kind
    if not fits or (kind is float and parameter.name == "timeout" and not 0 < value < math.inf):
        takes = f"one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else str(parameter)
        raise InputError(f"reward {name}: {parameter.name} is {value!r}; it takes {takes}")
    return value
