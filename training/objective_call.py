"""An objective is called, which may be a user's own: what is wrong with it is one line that names its file and line."""

import functools
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from errors import InputError, place_of
from objectives.base import Loss

FORM = "an objective takes (scores, batch) and returns Loss(total, weight, metrics): docs/new_objective.md"


def call_objective(objective: Callable[..., Loss], scores: Any, batch: Any) -> Loss:
    """The objective's Loss. Raises InputError for what it raises itself, and for what is no Loss of scalars."""
    try:
        loss = objective(scores, batch)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{_name(objective)} raised {_first_line(error)} {_place(error, objective)}; --debug shows "
                         f"the traceback") from error
    wrong = _wrong(loss)
    if wrong:
        raise InputError(f"{_name(objective)} returns {wrong}; {FORM}")
    return loss


def _wrong(loss: Any) -> str:
    """What is wrong with a Loss, in words."""
    if not isinstance(loss, Loss):
        found = f"an array of shape {list(loss.shape)}" if isinstance(loss, jax.Array) else type(loss).__name__
        return f"{found}, no Loss"
    for name in ("total", "weight"):
        shape = jnp.shape(getattr(loss, name))
        if shape:
            return f"a {name} of shape {list(shape)}, no scalar: sum it"
    for name, pair in loss.metrics.items():
        if not isinstance(pair, tuple) or len(pair) != 2 or any(map(jnp.shape, pair)):
            return f"the metric {name} in another form than a (sum, weight) of scalars"
    return ""


def _name(objective: Callable[..., Any]) -> str:
    """The objective with its file and line."""
    while isinstance(objective, functools.partial):
        objective = objective.func
    place = place_of(objective)
    return f"the objective {getattr(objective, '__qualname__', type(objective).__name__)}{place and f' ({place})'}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _place(error: Exception, objective: Callable[..., Any]) -> str:
    """Where: the last line of the objective's own file that was left for elsewhere."""
    file = place_of(objective).rpartition(":")[0]
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"at line {own[-1].lineno} ({own[-1].line})" if own else "where it is called"
