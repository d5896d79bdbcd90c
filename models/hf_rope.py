"""Rotary positions as config.json spells them: rope_parameters, or rope_theta and rope_scaling.

transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`; both are read as transformers 5 does.
"""

import math
from typing import Any

from errors import InputError, as_json
from models.config import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor",
             "original_max_position_embeddings")
"""the keys of config.json that are read here"""

_THETA = 10_000.0
_ALWAYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "finetuned"}
_KINDS: dict[str, set[str]] = {
    "default": set(), "linear": {"factor"}, "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}}
"""kind -> the keys that it reads"""


def read_rope(values: dict[str, Any], where: str) -> tuple[float, RopeScaling | None, int]:
    """(theta, scaling, positions that the model takes) of a config.json with its defaults filled in.

    Raises InputError for a kind that is not computed, for keys that the kind does not have, and for rotary positions of
    each layer's own. YaRN's positions are at least factor * original, which max_position_embeddings often leaves out.
    """
    rope = _merged(values, where)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    _check(rope, kind, where)
    for key in ("rope_theta", "original_max_position_embeddings"):
        if values.get(key) is not None and not _is_number(values[key]):
            raise InputError(f"{where}: {key}={as_json(values[key])} is no number")
    if any(each.get("partial_rotary_factor") not in (None, 1) for each in (rope, values)):
        raise InputError(f"{where}: partial_rotary_factor turns a part of each head only, which is not supported")
    longest = values["max_position_embeddings"]
    original = values.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or longest
    theta = float(rope.get("rope_theta") or values.get("rope_theta") or _THETA)
    try:
        scaling = _scaling(rope, kind, original, longest)
    except KeyError as missing:
        raise InputError(f"{where}: rope scaling {kind!r} lacks {missing}; add it") from None
    if isinstance(scaling, YarnScaling):
        longest = max(longest, math.floor(scaling.factor * scaling.original_max_length))
    return theta, scaling, longest


def _merged(values: dict[str, Any], where: str) -> dict[str, Any]:
    """rope_scaling and rope_parameters as one, without what is null; both may be there where they agree."""
    given = []
    for key in ("rope_parameters", "rope_scaling"):
        rope = values.get(key) or {}
        if not isinstance(rope, dict):
            raise InputError(f"{where}: {key}={as_json(rope)} is no object of rope_type and its numbers; mend it")
        if any(isinstance(value, dict) for value in rope.values()):
            raise InputError(f"{where}: {key}={as_json(rope)} gives kinds of layers rotary positions of their own, "
                             f"which is not supported; only one set for all layers is")
        given.append({name: value for name, value in rope.items()
                      if value is not None or name == "truncate"})  # whose null is false in transformers
    new, old = given
    differing = [name for name in new.keys() & old.keys() if new[name] != old[name]]
    if differing:
        raise InputError(f"{where}: rope_parameters and rope_scaling differ in {min(differing)}; take one of them out")
    return new | old


def _check(rope: dict[str, Any], kind: str, where: str) -> None:
    if kind in ("dynamic", "longrope", "su"):
        raise InputError(f"{where}: rope scaling {kind!r} is not supported: its frequencies follow the longest row of "
                         f"a batch, so a row's scores would depend on its neighbours")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"{where}: rope scaling {kind!r} is not supported; only {', '.join(_KINDS)} are")
    unknown = sorted(name for name in rope.keys() - _ALWAYS - _KINDS[kind] if rope[name] is not None)
    if unknown:
        raise InputError(f"{where}: rope scaling {kind!r} has no key {unknown[0]!r} ({as_json(rope[unknown[0]])}); "
                         f"where it changes nothing, take it out")
    numbers = [name for name in rope if name not in ("rope_type", "type", "finetuned", "truncate")]
    odd = [name for name in numbers if not _is_number(rope[name])]
    if odd:
        raise InputError(f"{where}: rope scaling {kind!r} has {odd[0]}={as_json(rope[odd[0]])}, which is no number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scaling(rope: dict[str, Any], kind: str, original: int, longest: int) -> RopeScaling | None:
    if kind == "linear":
        return LinearScaling(float(rope["factor"]))
    if kind == "llama3":
        return Llama3Scaling(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], original)
    if kind == "yarn":
        factor = float(rope.get("factor") or longest / original)
        return YarnScaling(factor, original, _attention_factor(rope, factor), float(rope.get("beta_fast") or 32),
                           float(rope.get("beta_slow") or 1), bool(rope.get("truncate", True)))
    return None


def _attention_factor(rope: dict[str, Any], factor: float) -> float:
    """What cosine and sine are multiplied by: 0.1 ln(factor) + 1, the paper's, unless the configuration says more."""
    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if "attention_factor" in rope:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return magnitude(rope["mscale"]) / magnitude(rope["mscale_all_dim"])
    return magnitude(1.0)


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """`rope_scaling` of config.json, which transformers 4 and 5 read."""
    if scaling is None:
        return None
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_length}
    return {"rope_type": "yarn", "factor": scaling.factor, "attention_factor": scaling.attention_factor,
            "beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate,
            "original_max_position_embeddings": scaling.original_max_length}
