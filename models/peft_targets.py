"""Which linear layers a PEFT adapter is on, of what rank and scale each: peft's rules, which go by modules' names."""

import re
from typing import Any

from errors import InputError, as_json
from models.weights import LINEAR_NAMES

Place = tuple[int, str]
"""layer, and our name of a linear layer in it"""

_ELSEWHERE = ("lm_head", "model.embed_tokens")
"""modules that peft adapts and Temper does not"""


def module_name(place: Place) -> str:
    """`model.layers.3.self_attn.q_proj` of (3, "q")."""
    return f"model.layers.{place[0]}.{LINEAR_NAMES[place[1]]}"


def adapted_layers(settings: dict[str, Any], num_layers: int, where: str) -> dict[Place, tuple[int, float]]:
    """(rank, scale) of every linear layer that adapter_config.json names. Raises InputError where it names none, or a
    module that is not computed with an adapter."""
    every = [(layer, name) for layer in range(num_layers) for name in LINEAR_NAMES]
    found = {place: _size(settings, module_name(place)) for place in every if _is_target(settings, module_name(place))}
    other = [name for name in _ELSEWHERE if _is_target(settings, name) and settings["target_modules"] != "all-linear"]
    if other:
        raise InputError(f"{where}: target module {other[0]!r} is not supported; only the linear layers of a block "
                         f"are ({', '.join(name.split('.')[1] for name in LINEAR_NAMES.values())})")
    if not found:
        raise InputError(f"{where}: target_modules {as_json(settings['target_modules'])} is no layer of this model")
    return found


def _is_target(settings: dict[str, Any], name: str) -> bool:
    """peft's check_target_module_exists."""
    if _matches(settings.get("exclude_modules") or [], name):
        return False
    targets = settings["target_modules"]
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return True
    return _matches(targets, name) and (isinstance(targets, str) or name in targets or _in_layers(settings, name))


def _matches(patterns: str | list[str], name: str) -> bool:
    """A string is an expression for the whole name, a list has names or their ends."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == each or name.endswith(f".{each}") for each in patterns)


def _in_layers(settings: dict[str, Any], name: str) -> bool:
    """True where `layers_to_transform` has the name's layer, or says nothing."""
    layers, patterns = settings.get("layers_to_transform"), settings.get("layers_pattern") or []
    if layers is None or layers == []:
        return True
    expressions = [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]
    found = (re.match(rf"(?:^|.*?\.){each}\.(?P<layer>\d+)\.", name) for each in expressions)
    layer = next((int(match["layer"]) for match in found if match), None)
    return layer in (layers if isinstance(layers, list) else [layers])


def _size(settings: dict[str, Any], name: str) -> tuple[int, float]:
    rank = _from_pattern(settings.get("rank_pattern"), name, settings["r"])
    alpha = _from_pattern(settings.get("alpha_pattern"), name, settings["lora_alpha"])
    return rank, alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _from_pattern(pattern: dict[str, Any] | None, name: str, default: Any) -> Any:
    """The value of the first expression that fits the name's end."""
    fitting = (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", name))
    return next(fitting, default)
