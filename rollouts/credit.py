"""Who is credited with what: advantages, from groups and the batch that they make.

    def credit(groups, batch) -> {"advantages": [N] or [N, T]}

`batch` is rollouts.episodes.to_batch's, an episode a row, group by group: its `rewards` [N] are NaN for none, and
already less the KL that is in the reward; `token_rewards` [N, T] are the same by token. What a credit function `needs`
besides (a tuple of names on it, as on an objective) is a column of the batch: `old_logps` and `ref_logps` [N, T],
`greedy_rewards` [N], what the likeliest answer to each row's prompt got, and `prefix_values` [N, T] (rollouts/vine.py).
Further columns that it gives reach the objective.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from data.specs import load_function
from errors import InputError, shown
from objectives.advantages import ADVANTAGES, penalised
from objectives.base import declared
from objectives.grpo import KL
from objectives.pairs import log_ratios
from rollouts.baselines import BASELINES
from rollouts.episodes import Group
from rollouts.returns import adaptive_lam, explained_variance, gae, token_rewards, whiten

COMPUTED = ("old_logps", "ref_logps", "greedy_rewards", "prefix_values")
"""columns that are computed where a credit function needs them"""
GIVEN = ("tokens", "positions", "segment_ids", "loss_mask", "sampler_logps", "truncated", "prompt_length", "rewards",
         "token_rewards")
"""columns that a batch always has"""
Columns = dict[str, np.ndarray]
Credit = Callable[[Sequence[Group], Columns], Columns]


def make_credit(name: str) -> Credit:
    """The function of a name of objectives.advantages.ADVANTAGES or rollouts.baselines.BASELINES, or of
    package.module:name. Raises InputError for none of them."""
    if ":" in name:
        return _checked(name, load_function(name))
    if name in BASELINES:
        return BASELINES[name]
    if name not in ADVANTAGES:
        raise InputError(f"no advantages are called {name}; there are {', '.join((*ADVANTAGES, *BASELINES))}, and "
                         f"package.module:name")

    def credit(groups: Sequence[Group], batch: Columns) -> Columns:
        rewards = batch["rewards"].reshape(len(groups), -1)
        with jax.enable_x64(True):  # equal rewards have advantages of 0, not of what float32 rounds to
            return {"advantages": np.asarray(ADVANTAGES[name](rewards), np.float32).ravel()}

    return credit


def _checked(name: str, function: Credit) -> Credit:
    flag = f"--algorithm.advantages {name}"
    unknown = [each for each in declared(function) if each not in (*GIVEN, *COMPUTED)]
    if unknown:
        raise InputError(f"{flag}: needs {shown(unknown[0])}, which no batch has; there are "
                         f"{', '.join((*COMPUTED, *GIVEN))}; what rows have is in the groups' prompts")

    def credit(groups: Sequence[Group], batch: Columns) -> Columns:
        own = {column: values.copy() for column, values in batch.items()}  # may be changed in place
        given = function(groups, own)
        if not isinstance(given, dict) or "advantages" not in given:
            raise InputError(f"{flag}: gave no column advantages; give a dictionary with one")
        return {column: _read_column(f"{flag}: the column {shown(column)}", column, values, batch)
                for column, values in given.items()}

    credit.needs = tuple(each for each in declared(function) if each in COMPUTED)
    return credit


def _read_column(place: str, name: Any, values: Any, batch: Columns) -> np.ndarray:
    """Numbers of rows or tokens, under a name that is free."""
    if not isinstance(name, str) or name in batch:
        raise InputError(f"{place} is the batch's own, or has no text for a name; give it another name")
    try:
        column = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place} is no array of numbers ({error}); give one") from None
    shape = batch["tokens"].shape
    if column.shape not in (shape[:1], shape) or not np.isfinite(column).all():
        raise InputError(f"{place} has the shape {column.shape}, or numbers that are not finite; give {shape[:1]} or "
                         f"{shape}, 0 for no reward")
    return column


def with_kl_in_reward(batch: Columns, beta: float, kl: str) -> np.ndarray:
    """The rewards [N] less beta times the KL of each episode (objectives.advantages.penalised), of a batch with
    old_logps and ref_logps."""
    given: Any = penalised(batch["rewards"], batch["old_logps"], batch["ref_logps"], batch["loss_mask"], beta, kl)
    return np.asarray(given, np.float64)


def nll_weights(batch: Columns, rewards: np.ndarray, least: float, num_minibatches: int, by_token: bool) -> np.ndarray:
    """What objectives.positive_nll takes: [N], 0 for rows with less than `least` of the `rewards` [N]; for the others
    the units of their mini-batch, tokens or rows, over the tokens of the right ones there."""
    lengths = np.sum(batch["loss_mask"], axis=1)
    right = (np.nan_to_num(rewards, nan=-np.inf) >= least).astype(np.float64)
    units = (lengths if by_token else np.ones(len(lengths))).reshape(num_minibatches, -1).sum(1, keepdims=True)
    tokens = (right * lengths).reshape(num_minibatches, -1).sum(1, keepdims=True)
    return (right.reshape(num_minibatches, -1) * units / np.maximum(tokens, 1)).ravel().astype(np.float32)


def rewards_by_token(batch: Columns, beta: float = 0.0, kl: str = "k1") -> np.ndarray:
    """returns.token_rewards of a batch; with beta above 0 it has old_logps and ref_logps."""
    estimates = np.asarray(KL[kl](log_ratios(batch["old_logps"], batch["ref_logps"]))) if beta else 0.0
    return token_rewards(batch["rewards"], batch["loss_mask"], estimates, beta)


@dataclasses.dataclass(frozen=True)
class GAE:
    """The credit function of actor-critic methods: advantages, whitened, and returns for the critic, both [N, T]. The
    batch has `values` [N, T] besides, and with beta above 0 old_logps and ref_logps. Raises InputError for values that
    are not finite, which would be every advantage's."""

    gamma: float
    lam: float
    """of advantages"""
    critic_lam: float
    """of returns"""
    lam_alpha: float = 0.0
    """above 0, the advantages' is returns.adaptive_lam's in place of `lam`"""
    beta: float = 0.0
    """of the KL in the reward, token by token"""
    kl: str = "k1"
    missing_end_penalty: float = 0.0
    """taken from the reward of an episode that a limit cut"""

    def __call__(self, groups: Sequence[Group], batch: Columns) -> Columns:
        values, mask = batch["values"].astype(np.float64), batch["loss_mask"]
        if not np.isfinite(values[mask != 0]).all():
            raise InputError("the critic gives values that are not finite, for its weights are damaged or have grown "
                             "without bound; give another --critic.model, or a lower --critic.learning-rate")
        scores = batch["rewards"] - self.missing_end_penalty * batch["truncated"]
        rewards = rewards_by_token(batch | {"rewards": scores}, self.beta, self.kl)
        lam = adaptive_lam(mask, self.lam_alpha) if self.lam_alpha else self.lam
        advantages = gae(rewards, values, mask, self.gamma, lam)
        returns = values + gae(rewards, values, mask, self.gamma, self.critic_lam)
        return {"advantages": whiten(advantages, mask).astype(np.float32),
                "returns": np.where(mask != 0, returns, 0.0).astype(np.float32)}


def value_metrics(batch: Columns, returns: np.ndarray) -> dict[str, float]:
    """How good the critic was before the step: explained_variance, left out where returns do not vary; and the spread
    of returns over tokens."""
    drawn = batch["loss_mask"] != 0
    explained = explained_variance(batch["values"], returns, batch["loss_mask"])
    metrics = {"returns/mean": returns[drawn].mean(), "returns/std": returns[drawn].std()} if drawn.any() else {}
    return {name: float(value) for name, value in metrics.items()} | (
        {} if np.isnan(explained) else {"explained_variance": explained})
