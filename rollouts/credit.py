"""Who is credited with what: advantages, from groups and the batch that they make.

    def credit(groups, batch) -> {"advantages": [N] or [N, T]}

`batch` is rollouts.episodes.to_batch's, an episode a row, group by group: its `rewards` [N] are NaN for none, and
already less the KL that is in the reward. What a credit function `needs` besides (`old_logps`, `ref_logps`; a tuple of
names on it, as on an objective) is a column [N, T] of the batch. Further columns that it gives reach the objective.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from data.specs import load_function
from errors import InputError
from objectives.advantages import ADVANTAGES, penalised
from rollouts.episodes import Group

Columns = dict[str, np.ndarray]
Credit = Callable[[Sequence[Group], Columns], Columns]


def make_credit(name: str) -> Credit:
    """The function of a name of objectives.advantages.ADVANTAGES, or of package.module:name. Raises InputError for
    neither."""
    if ":" in name:
        return _checked(name, load_function(name))
    if name not in ADVANTAGES:
        raise InputError(f"no advantages are called {name}; there are {', '.join(ADVANTAGES)}, and package.module:name")

    def credit(groups: Sequence[Group], batch: Columns) -> Columns:
        rewards = batch["rewards"].reshape(len(groups), -1)
        with jax.enable_x64(True):  # equal rewards have advantages of 0, not of what float32 rounds to
            return {"advantages": np.asarray(ADVANTAGES[name](rewards), np.float32).ravel()}

    return credit


def _checked(name: str, function: Credit) -> Credit:
    def credit(groups: Sequence[Group], batch: Columns) -> Columns:
        given = function(groups, batch)
        if not isinstance(given, dict) or "advantages" not in given:
            raise InputError(f"--algorithm.advantages {name}: gave no column advantages; give a dictionary with one")
        columns = {column: np.asarray(values, np.float32) for column, values in given.items()}
        shape = batch["tokens"].shape
        for column, values in columns.items():
            if values.shape not in (shape[:1], shape) or not np.isfinite(values).all():
                raise InputError(f"--algorithm.advantages {name}: the column {column} has the shape {values.shape}, or "
                                 f"numbers that are not finite; give {shape[:1]} or {shape}, 0 for no reward")
        return columns

    credit.needs = tuple(getattr(function, "needs", ()))
    return credit


def with_kl_in_reward(batch: Columns, beta: float, kl: str) -> np.ndarray:
    """The rewards [N] less beta times the KL of each episode (objectives.advantages.penalised), of a batch with
    old_logps and ref_logps."""
    given: Any = penalised(batch["rewards"], batch["old_logps"], batch["ref_logps"], batch["loss_mask"], beta, kl)
    return np.asarray(given, np.float64)
