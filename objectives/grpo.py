"""Policy gradient on whole completions: GRPO and its relatives, each choice a table of short functions.

Rollouts, rewards and advantages (objectives.advantages) come before the update and travel in the batch as data.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from objectives.base import Loss, masked_sum
from objectives.pairs import answer_means, answer_sums, log_ratios
from objectives.settings import Algorithm, PolicyLoss

LARGEST_EXPONENT = 80.0
"""of a ratio with a gradient: exp(80) is finite in float32, and so is its gradient"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Algorithm, PolicyLoss):
    """All settings of `grpo`. Raises ValueError, in one line, for what makes no loss or would be read by nothing."""

    def __post_init__(self) -> None:
        tables = {"importance_sampling_level": RATIOS, "loss": LOSSES, "loss_aggregation": AGGREGATIONS, "kl": KL,
                  "importance_sampling_correction": CORRECTIONS}
        for name, table in tables.items():
            if getattr(self, name) not in table:
                raise ValueError(f"no {name} is called {getattr(self, name)}; there are {', '.join(table)}")
        problems = [message for wrong, message in (*self._out_of_range(), *self._unread()) if wrong]
        if problems:
            raise ValueError(problems[0])

    def _out_of_range(self) -> tuple[tuple[bool, str], ...]:
        numbers = ("epsilon_low", "epsilon_high", "beta", "importance_sampling_floor")
        floor, cap = self.importance_sampling_floor, self.importance_sampling_cap
        return (
            *((not getattr(self, name) >= 0, f"{name} is {getattr(self, name)} but must be at least 0")
              for name in numbers),
            (self.delta is not None and not self.delta > 1 + self.epsilon_high,
             f"delta is {self.delta} but must be above 1 + epsilon_high, which is {1 + self.epsilon_high:g}"),
            (not cap > floor,
             f"importance_sampling_cap is {cap} but must be above importance_sampling_floor, {floor}"),
            (self.loss_aggregation == "constant" and not (self.constant_length or 0) > 0,
             f"the aggregation constant needs a constant_length above 0, not {self.constant_length}"),
        )

    def _unread(self) -> tuple[tuple[bool, str], ...]:
        """A function of a table reads the settings that its code names; all that were changed must be read by one."""
        bounds = {name: entry and entry[1] for name, entry in CORRECTIONS.items()}
        tables = {"loss": LOSSES, "loss_aggregation": AGGREGATIONS, "importance_sampling_correction": bounds}
        changed = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        readers = [(kind, name, [choice for choice, function in table.items() if _reads(function, name)])
                   for kind, table in tables.items() for name in changed]
        return (
            *((bool(choices) and getattr(self, kind) not in choices,
               f"{name} is of the {kind.rpartition('_')[2]} {', '.join(choices)}, not of {getattr(self, kind)}")
              for kind, name, choices in readers),
            *((self.beta == 0 and name in changed, f"{name} says nothing while beta is 0")
              for name in ("kl", "kl_weighted")),
        )


def _reads(function: Callable[..., Any] | None, setting: str) -> bool:
    return function is not None and setting in inspect.unwrap(function).__code__.co_names


# --------------------------------------------------------------------------------------------- ratios to the old policy

def ratio_token(log_r: Float[Array, "B T"], mask: Float[ArrayLike, "B T"]) -> Float[Array, "B T"]:
    """log r_t = logp_t - old_t: a ratio for each token. PPO, GRPO."""
    return log_r


def ratio_sequence(log_r: Float[Array, "B T"], mask: Float[ArrayLike, "B T"]) -> Float[Array, "B 1"]:
    """mean_t log r_t: one ratio for the whole row, the geometric mean. GSPO (Zheng et al. 2025, arXiv:2507.18071,
    eq. 7), with bounds of a few 1e-4 and the aggregation sequence_mean there."""
    return answer_means(log_r, mask)[:, None]


def ratio_sequence_token(log_r: Float[Array, "B T"], mask: Float[ArrayLike, "B T"]) -> Float[Array, "B T"]:
    """sg(mean_t log r_t) + log r_t - sg(log r_t): the value of GSPO's ratio, the gradient of each token's own.
    GSPO-token (as ratio_sequence, eq. 14). With sequence_mean and one advantage a row, loss and gradient are those of
    "sequence"; with an advantage for every token only this one tells tokens apart."""
    return jax.lax.stop_gradient(ratio_sequence(log_r, mask) - log_r) + log_r


def ratio_product(log_r: Float[Array, "B T"], mask: Float[ArrayLike, "B T"]) -> Float[Array, "B 1"]:
    """sum_t log r_t: the probability ratio of the whole completion. TRL's RLOO clips this one, with sequence_mean."""
    return answer_sums(log_r, mask)[:, None]


RATIOS: dict[str, Callable[[Array, ArrayLike], Array]] = {
    "token": ratio_token, "sequence": ratio_sequence, "sequence_token": ratio_sequence_token, "product": ratio_product}
"""log r_t by token (exactly 0 within rounding), mask -> log of the ratio, by token [B, T] or by row [B, 1]"""


# -------------------------------------------------------------------------------------------------- what is minimised

class Tokens(NamedTuple):
    """What a loss sees: [B, T], or [B, 1] where a row has one value for all of its tokens. 0 off the targets."""

    r: Float[Array, "B #T"]
    """ratio to the old policy, with gradient"""
    A: Float[Array, "B #T"]
    """advantages"""
    logps: Float[Array, "B T"]


class Clipped(NamedTuple):
    """Losses, and where a bound took the gradient away."""

    loss: Float[Array, "B #T"]
    low: Array
    high: Array


def loss_clip(t: Tokens, s: Settings) -> Clipped:
    """-min(r A, clip(r, 1 - e_low, 1 + e_high) A); r is at most delta where A < 0, if there is one.

    PPO's objective in GRPO (Shao et al. 2024, arXiv:2402.03300, eq. 3); bounds of their own: DAPO (Yu et al. 2025,
    arXiv:2503.14476, eq. 8); delta: dual clip (Ye et al. 2019, arXiv:1912.09729, eq. 5). On a first update r is 1 and
    the gradient is REINFORCE's, -A grad logp. low and high do not count what delta cuts, as in TRL.
    """
    capped = t.r if s.delta is None else jnp.minimum(t.r, s.delta)
    loss = -jnp.minimum(capped * t.A, jnp.clip(t.r, 1 - s.epsilon_low, 1 + s.epsilon_high) * t.A)
    return Clipped(loss, (t.r < 1 - s.epsilon_low) & (t.A < 0), (t.r > 1 + s.epsilon_high) & (t.A > 0))


def loss_cispo(t: Tokens, s: Settings) -> Clipped:
    """-sg(min(r, 1 + e_high)) A logp: the ratio is bounded, but every token keeps its gradient; none is below.

    CISPO (MiniMax-M1 2025, arXiv:2506.13585, eq. 4 and 5). Deviation of TRL 1.16: there epsilon_high itself is the
    bound, so that its default of 0.2 turns every ratio, 1 on the first update, into 0.2; ours is TRL's minus 1 (4 for
    the 5 of ScaleRL). TRL counts bounded ratios where A > 0 only; they are bounded whatever the sign, as high says.
    """
    bounded = jax.lax.stop_gradient(jnp.minimum(t.r, 1 + s.epsilon_high))
    high = (t.r > 1 + s.epsilon_high) & (t.A != 0)
    return Clipped(-bounded * t.A * t.logps, jnp.zeros_like(high), high)


LOSSES: dict[str, Callable[[Tokens, Settings], Clipped]] = {"clip": loss_clip, "cispo": loss_cispo}


# ------------------------------------------------------------------------------------------- KL to the reference

KL: dict[str, Callable[[Array], Array]] = {
    "k1": lambda x: x,
    "k2": lambda x: x**2 / 2,
    "k3": lambda x: jnp.expm1(jnp.minimum(-x, LARGEST_EXPONENT)) + x}
"""x = logp - ref -> an estimate of KL(pi || ref) from one token drawn from pi (Schulman 2020, "Approximating KL
divergence"). Value: k1 and k3 are unbiased, and k3 is never negative and varies less; k2 is biased.

Gradient of the estimate in a loss, on policy, in expectation: k2's is that of KL(pi || ref); k1's is 0; k3's is that of
the other KL, KL(ref || pi). So only k2 should be in a loss as it is. Times the ratio (`kl_weighted`; DeepSeek-V3.2,
arXiv:2512.02556) k1's and k3's are that of KL(pi || ref), off policy as well, and k2's is not any more.
All of this holds for the KL of a token's distribution after its prefix. That a token leads to prefixes where policy and
reference differ, no estimate in the loss knows; one in the reward does (objectives.advantages.penalised)."""


# ------------------------------------------------------------------------------------------ from tokens to one number

def token_mean(losses: Float[Array, "B T"], mask: Float[Array, "B T"], rows: Array, s: Settings) -> tuple[Array, Array]:
    """Sum over tokens; the unit is the target token of the whole optimiser batch (DAPO, arXiv:2503.14476).

    TRL's dapo and cispo divide by the tokens of the generation batch times the share of its steps in the optimiser
    batch, bnpo by those of the micro-batch; all agree where the three batches are one.
    """
    return masked_sum(losses, mask), jnp.sum(mask)


def sequence_mean(losses: Float[Array, "B T"], mask: Float[Array, "B T"], rows: Array,
                  s: Settings) -> tuple[Array, Array]:
    """Sum over rows of the mean over their tokens; the unit is the row (GRPO, arXiv:2402.03300; TRL's grpo)."""
    return jnp.sum(answer_means(losses, mask)), jnp.sum(rows)


def constant(losses: Float[Array, "B T"], mask: Float[Array, "B T"], rows: Array, s: Settings) -> tuple[Array, Array]:
    """Sum over tokens / constant_length; the unit is the row (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783).

    A constant_length of 1 gives whole completions: REINFORCE and RLOO on a first update; with the ratio "sequence",
    LUSPO (arXiv:2602.05261).
    """
    return masked_sum(losses, mask) / s.constant_length, jnp.sum(rows)


AGGREGATIONS: dict[str, Callable[[Array, Array, Array, Settings], tuple[Array, Array]]] = {
    "token_mean": token_mean, "sequence_mean": sequence_mean, "constant": constant}
"""losses [B, T], mask [B, T], rows [B] (1 where there is one) -> (total, weight)"""


# ------------------------------------------------------------------------------- between sampler and trainer

def truncate(w: Float[Array, "B #T"], s: Settings) -> Float[Array, "B #T"]:
    """clip(w, floor, cap)"""
    return jnp.clip(w, s.importance_sampling_floor, s.importance_sampling_cap)


def drop(w: Float[Array, "B #T"], s: Settings) -> Float[Array, "B #T"]:
    """w between floor and cap, 0 beyond"""
    return jnp.where((w < s.importance_sampling_floor) | (w > s.importance_sampling_cap), 0.0, w)


def mask_beyond(w: Float[Array, "B #T"], s: Settings) -> Float[Array, "B #T"]:
    """1 between floor and cap, 0 beyond"""
    return jnp.where((w < s.importance_sampling_floor) | (w > s.importance_sampling_cap), 0.0, 1.0)


CORRECTIONS: dict[str, tuple[Callable[[Array, ArrayLike], Array], Callable[[Array, Settings], Array]] | None] = {
    "none": None,
    "token_truncate": (ratio_token, truncate), "token_mask": (ratio_token, drop),
    "sequence_truncate": (ratio_product, truncate), "sequence_mask": (ratio_product, drop),
    "geometric_mask": (ratio_sequence, mask_beyond)}
"""Weights w = exp(old - sampler) on the loss, as data: the sampler's distribution is not quite the trainer's.

By token or, for the whole row, by exp of the sum. truncate: TIS (Yao et al. 2025, "Your efficient RL framework secretly
brings you off-policy RL training"); mask: by token IcePop (Ling Team 2025), by row TRL's default; geometric: by
the row's geometric mean, which is no weight, since it does not correct for anything, but tells rows that went astray
whatever their length (verl's seq_mean_k1, bounds of 0.999 and 1.001 or so). What is dropped stays in the denominator.
Cap and names are TRL's. Neither KL nor entropy are weighted, as in TRL.

With token_truncate, three policies are apart: w leads from the behaviour policy that drew the tokens (sampler_logps,
perhaps of an older version) to the proximal one (old_logps, scored when the batch begins), and the clipped ratio from
there to the current one. That is decoupled PPO (Hilton et al. 2022, arXiv:2110.00641; AReaL, arXiv:2505.24298)."""


# ------------------------------------------------------------------------------------------------- the objective

def grpo(scores: Any, batch: dict[str, ArrayLike], **settings: Any) -> Loss:
    """AGGREGATION of w LOSS(r, A) + beta KL - entropy_coefficient H over completions; `settings` are those of Settings.

    One row is one completion. Columns, [B, T] unless said otherwise:
    - loss_mask: the completion's tokens, the end token with them; segment_ids: a row with none but 0 fills up the batch
      and counts for nothing.
    - advantages [B], or [B, T] for one a token.
    - old_logps, the log-probabilities of the policy that began this batch of rollouts, as the trainer scores them.
      Without them it is the first update: the old policy is this one, ratios are exactly 1, and so they are with
      old_logps that equal logps within rounding.
    - ref_logps, the reference's: needed for beta > 0.
    - sampler_logps, the sampler's: needed for a correction; and compared with old.
    - truncated [B], 1 where a completion was cut: needed for mask_truncated. Such a row is no target. token_mean then
      divides by the tokens that are left, sequence_mean and constant by all rows, cut ones too, as TRL does.

    The unit is the target token for token_mean, else the row. Every unit is of the optimiser batch, nothing couples
    rows. Exact reductions: RATIOS, AGGREGATIONS. Deviations of TRL 1.16: CISPO's bound (loss_cispo), denominators
    (token_mean); its KL is k3 with kl_weighted by default, ours is the paper's k3 without; its entropy bonus is a mean
    over a micro-batch's tokens whatever the aggregation, ours is aggregated like the loss.

    Metrics: clip_ratio/low_mean, /high_mean and /region_mean (either), ratio/mean: shares and mean over tokens, or over
    rows where a row has one ratio and advantage; kl, k3 to the reference, where ref_logps are given; entropy;
    sampling/logp_difference/mean and /max, sampling/importance_ratio/min, /mean and /max where sampler_logps are given.
    Raises ValueError as Settings says; KeyError for a column that is missing.
    """
    s = Settings(**settings)
    mask = batch["loss_mask"] * (1 - batch["truncated"][:, None] if s.mask_truncated else 1)
    rows = jnp.any(batch["segment_ids"] != 0, axis=-1).astype(mask.dtype)
    logps, entropy = _targets(scores.logps, mask), _targets(scores.entropy, mask)
    old = _targets(batch["old_logps"], mask) if "old_logps" in batch else jax.lax.stop_gradient(logps)
    r = jnp.exp(jnp.minimum(RATIOS[s.importance_sampling_level](log_ratios(logps, old), mask), LARGEST_EXPONENT))
    clipped = LOSSES[s.loss](Tokens(r, _advantages(batch, mask), logps), s)
    losses = clipped.loss * _correction(old, batch, mask, s) - s.entropy_coefficient * entropy
    if s.beta > 0:
        losses = losses + s.beta * KL[s.kl](_to_reference(logps, batch, mask)) * (r if s.kl_weighted else 1.0)
    total, weight = AGGREGATIONS[s.loss_aggregation](losses, mask, rows, s)
    metrics = _metrics(clipped, r, logps, entropy, batch, mask)
    if "sampler_logps" not in batch:
        return Loss(total, weight, metrics)
    sampling, extremes = _sampling(jax.lax.stop_gradient(old), batch, mask)
    return Loss(total, weight, metrics | sampling, extremes)


def _metrics(clipped: Clipped, r: Array, logps: Array, entropy: Array, batch: dict[str, ArrayLike],
             mask: Float[Array, "B T"]) -> dict[str, tuple[Array, Array]]:
    low, high = clipped.low, clipped.high
    named = {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high,
             "ratio/mean": r, "entropy": entropy}
    if "ref_logps" in batch:
        named["kl"] = KL["k3"](_to_reference(logps, batch, mask))
    return {name: _mean(jax.lax.stop_gradient(values), mask) for name, values in named.items()}


def _sampling(old: Float[Array, "B T"], batch: dict[str, ArrayLike],
              mask: Float[Array, "B T"]) -> tuple[dict[str, tuple[Array, Array]], dict[str, Array]]:
    """How far trainer and sampler disagree: |old - sampler| and exp(old - sampler) by token, before any cap (TRL logs
    what is left after it)."""
    differences = log_ratios(old, _targets(batch["sampler_logps"], mask))
    sizes, ratios = jnp.abs(differences), jnp.exp(differences)
    means = {"sampling/logp_difference/mean": _mean(sizes, mask), "sampling/importance_ratio/mean": _mean(ratios, mask)}
    return means, {
        "sampling/logp_difference/max": jnp.max(jnp.where(mask != 0, sizes, -jnp.inf)),
        "sampling/importance_ratio/max": jnp.max(jnp.where(mask != 0, ratios, -jnp.inf)),
        "sampling/importance_ratio/min": jnp.min(jnp.where(mask != 0, ratios, jnp.inf))}


def _mean(values: Array, mask: Float[Array, "B T"]) -> tuple[Array, Array]:
    """(sum, weight) over tokens, or over rows with targets for [B, 1]."""
    units = _units(values, mask)
    return masked_sum(values.astype(mask.dtype), units), jnp.sum(units)


def _units(values: Array, mask: Float[Array, "B T"]) -> Float[Array, "B #T"]:
    """What values of this shape are counted by: the mask, or for [B, 1] whether the row has any target."""
    return mask if values.shape == mask.shape else jnp.any(mask != 0, axis=-1, keepdims=True).astype(mask.dtype)


def _targets(values: ArrayLike, mask: Float[Array, "B T"]) -> Float[Array, "B #T"]:
    """0 off the targets, so that nothing there, finite or not, reaches the loss or its gradient."""
    return jnp.where(_units(values, mask) != 0, values, 0.0)


def _advantages(batch: dict[str, ArrayLike], mask: Float[Array, "B T"]) -> Float[Array, "B #T"]:
    given = jnp.asarray(batch["advantages"])
    return jax.lax.stop_gradient(_targets(given[:, None] if given.ndim == 1 else given, mask))


def _to_reference(logps: Float[Array, "B T"], batch: dict[str, ArrayLike],
                  mask: Float[Array, "B T"]) -> Float[Array, "B T"]:
    return log_ratios(logps, _targets(batch["ref_logps"], mask))


def _correction(old: Float[Array, "B T"], batch: dict[str, ArrayLike], mask: Float[Array, "B T"],
                s: Settings) -> ArrayLike:
    if CORRECTIONS[s.importance_sampling_correction] is None:
        return 1.0
    level, bound = CORRECTIONS[s.importance_sampling_correction]
    difference = log_ratios(old, _targets(batch["sampler_logps"], mask))
    return jax.lax.stop_gradient(bound(jnp.exp(level(difference, mask)), s))


def configure(**settings: Any) -> Callable[[Any, dict[str, ArrayLike]], Loss]:
    """`grpo` with these settings, checked. Nothing couples rows, so any of them may be split."""
    names = [field.name for field in dataclasses.fields(Settings)]
    unknown = sorted(set(settings) - set(names))
    if unknown:
        raise ValueError(f"no setting is called {', '.join(unknown)}; there are {', '.join(names)}")
    objective = functools.partial(grpo, **settings)
    objective.needs = needs(Settings(**settings))
    objective.optional = ("old_logps", "ref_logps", "sampler_logps")
    return objective


def needs(s: Settings) -> tuple[str, ...]:
    """The columns that these settings cannot do without."""
    wanted = {"advantages": True, "ref_logps": s.beta > 0, "truncated": s.mask_truncated,
              "sampler_logps": CORRECTIONS[s.importance_sampling_correction] is not None}
    return tuple(name for name, read in wanted.items() if read)
