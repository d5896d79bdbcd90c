"""Preference optimisation against a reference policy: the DPO family, one short function a loss."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Array, ArrayLike, Float

from objectives.base import Loss
from objectives.pairs import (
    answer_lengths,
    answer_means,
    answer_sums,
    log_ratios,
    policy_metrics,
    present_pairs,
    reward_metrics,
    split_pairs,
)

LARGEST_EXPONENT = 80.0
"""of an f-divergence's score: exp(80) is finite in float32, and so is its gradient"""


class Pairs(NamedTuple):
    """What a loss sees of P pairs; w is the chosen (won) answer, l the rejected (lost) one. A pair that fills up the
    batch has 0 everywhere, and lengths of 1."""

    s_w: Float[Array, "P"]
    """score: f'(exp(D)) of the divergence f; D itself for the reverse KL"""
    s_l: Float[Array, "P"]
    D_w: Float[Array, "P"]
    """log pi(y|x) - log ref(y|x), summed over the answer's tokens"""
    D_l: Float[Array, "P"]
    logps_w: Float[Array, "P"]
    """log pi(y|x), summed over the answer's tokens"""
    logps_l: Float[Array, "P"]
    length_w: Float[Array, "P"]
    """target tokens"""
    length_l: Float[Array, "P"]
    nll_w: Float[Array, "P"]
    """-log pi(y_w|x), never length-desensitised"""
    present: Float[Array, "P"]
    """1, or 0 for a pair that fills up the batch"""
    columns: dict[str, ArrayLike]
    """the batch, for what a loss alone needs"""
    beta: float
    label_smoothing: float
    tau: float

    @property
    def x(self) -> Float[Array, "P"]:
        """beta (s_w - s_l)"""
        return self.beta * (self.s_w - self.s_l)


def conservative(x: Float[Array, "P"], label_smoothing: float) -> Float[Array, "P"]:
    """-(1-e) log S(x) - e log S(-x): cross-entropy to labels that are flipped with probability e."""
    return -(1 - label_smoothing) * log_sigmoid(x) - label_smoothing * log_sigmoid(-x)


def loss_sigmoid(p: Pairs) -> Float[Array, "P"]:
    """(1-e)(-log S(x)) + e (-log S(-x)). DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7); with e > 0 conservative
    DPO (Mitchell 2023, "A note on DPO with noisy preferences"). TRL 1.16's sigmoid takes no notice of e."""
    return conservative(p.x, p.label_smoothing)


def loss_hinge(p: Pairs) -> Float[Array, "P"]:
    """max(0, 1 - x). SLiC (Zhao et al. 2023, arXiv:2305.10425) on DPO's margin (RSO, Liu et al. 2023,
    arXiv:2309.06657)."""
    return jax.nn.relu(1 - p.x)


def loss_ipo(p: Pairs) -> Float[Array, "P"]:
    """(s_w/|y_w| - s_l/|y_l| - 1/(2 beta))^2. IPO (Azar et al. 2023, arXiv:2310.12036, eq. 17), beta its tau, with each
    answer's score divided by its tokens, as TRL has it from the authors; ipo_sum is the equation as printed."""
    return (p.s_w / p.length_w - p.s_l / p.length_l - 1 / (2 * p.beta)) ** 2


def loss_ipo_sum(p: Pairs) -> Float[Array, "P"]:
    """(s_w - s_l - 1/(2 beta))^2. IPO, eq. 17 as printed; TRL has none. Equals ipo for answers of one token."""
    return (p.s_w - p.s_l - 1 / (2 * p.beta)) ** 2


def loss_robust(p: Pairs) -> Float[Array, "P"]:
    """[-(1-e) log S(x) + e log S(-x)] / (1-2e): its mean over labels flipped with probability e is the loss on clean
    ones. Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409). Equals sigmoid at e = 0. Unbounded below."""
    e = p.label_smoothing
    return (-(1 - e) * log_sigmoid(p.x) + e * log_sigmoid(-p.x)) / (1 - 2 * e)


def loss_exo_pair(p: Pairs) -> Float[Array, "P"]:
    """S(x)[log S(x) - log(1-e)] + S(-x)[log S(-x) - log e]: the KL from policy to labels (sigmoid's: from labels to
    policy). EXO (Ji et al. 2024, arXiv:2402.00856, eq. 16). 0 at S(x) = 1-e. Infinite at e = 0, TRL's default; the
    paper's e is 1e-3."""
    e = p.label_smoothing
    return sigmoid(p.x) * (log_sigmoid(p.x) - jnp.log1p(-e)) + sigmoid(-p.x) * (log_sigmoid(-p.x) - jnp.log(e))


def loss_nca_pair(p: Pairs) -> Float[Array, "P"]:
    """-log S(beta D_w) - [log S(-beta D_w) + log S(-beta D_l)]/2. NCA (Chen et al. 2024, arXiv:2402.05369), the
    chosen answer's reward being infinitely larger."""
    r_w, r_l = p.beta * p.D_w, p.beta * p.D_l
    return -log_sigmoid(r_w) - 0.5 * log_sigmoid(-r_w) - 0.5 * log_sigmoid(-r_l)


def loss_bco_pair(p: Pairs) -> Float[Array, "P"]:
    """-log S(beta D_w) - log S(-beta D_l). BCO (Jung et al. 2024, arXiv:2404.04656), whose delta, a running mean of
    rewards over steps that is taken from both, is 0 here, as in TRL's DPO trainer."""
    return -log_sigmoid(p.beta * p.D_w) - log_sigmoid(-p.beta * p.D_l)


def loss_sppo_hard(p: Pairs) -> Float[Array, "P"]:
    """(D_w - 1/(2 beta))^2 + (D_l + 1/(2 beta))^2. SPPO (Wu et al. 2024, arXiv:2405.00675, eq. 4.7), eta = 1/beta,
    where the chosen answer wins with probability 1; the paper's probabilities are a preference model's."""
    return (p.D_w - 0.5 / p.beta) ** 2 + (p.D_l + 0.5 / p.beta) ** 2


def loss_aot(p: Pairs) -> Float[Array, "P"]:
    """conservative(beta (m_(k) - ref m_(k))), m = log pi(y_w|x) - log pi(y_l|x), (k) the k-th smallest of the batch.

    AOT, paired (Melnyk et al. 2024, arXiv:2406.05882): the policy's margins dominate the reference's as distributions.
    Couples the rows. Equals sigmoid where both margins have the same order, as for a batch of one pair.
    """
    margins = p.logps_w - p.logps_l
    reference = margins - (p.D_w - p.D_l)
    return conservative(p.beta * (margins - quantiles_like(margins, reference, p.present)), p.label_smoothing)


def loss_aot_unpaired(p: Pairs) -> Float[Array, "P"]:
    """conservative(beta (D_w(k) - D_l(k))), (k) the k-th smallest of the batch: chosen answers dominate rejected ones,
    whichever they were paired with. AOT, unpaired (as loss_aot). Couples the rows."""
    return conservative(p.beta * (p.D_w - quantiles_like(p.D_w, p.D_l, p.present)), p.label_smoothing)


def quantiles_like(values: Float[Array, "P"], others: Float[Array, "P"],
                   present: Float[Array, "P"]) -> Float[Array, "P"]:
    """For each of `values` the one of `others` that has the same rank; absent pairs stand last in both."""
    ranks = jnp.argsort(_order(values, present))
    return others[_order(others, present)[ranks]]


def _order(values: Float[Array, "P"], present: Float[Array, "P"]) -> Array:
    return jnp.argsort(jnp.where(present != 0, jax.lax.stop_gradient(values), jnp.inf))


def loss_apo_zero(p: Pairs) -> Float[Array, "P"]:
    """1 - S(beta D_w) + S(beta D_l), for chosen answers better than the model's own. APO (D'Oosterlinck et al. 2024,
    arXiv:2408.06266, eq. 7)."""
    return 1 - sigmoid(p.beta * p.D_w) + sigmoid(p.beta * p.D_l)


def loss_apo_down(p: Pairs) -> Float[Array, "P"]:
    """S(beta D_w) + 1 - S(beta (D_w - D_l)), for chosen answers worse than the model's own. APO (as loss_apo_zero,
    eq. 8)."""
    return sigmoid(p.beta * p.D_w) + 1 - sigmoid(p.beta * (p.D_w - p.D_l))


def loss_discopop(p: Pairs) -> Float[Array, "P"]:
    """(1-m)(-log S(x)) + m exp(-x), m = S(x/tau), tau 0.05. DiscoPOP (Lu et al. 2024, arXiv:2406.08414, eq. 5).

    As the paper says, it is not convex: at tau 0.05 it rises from x = -0.118 to 0.073, so a policy that still is its
    reference (x = 0) is first led slightly the wrong way. m exp(-x) is taken as exp(log m - x), which is 0 and not
    0 * inf where x is very negative.
    """
    exponential = jnp.exp(log_sigmoid(p.x / p.tau) - p.x)
    return -sigmoid(-p.x / p.tau) * log_sigmoid(p.x) + exponential


def loss_sigmoid_norm(p: Pairs) -> Float[Array, "P"]:
    """-log S(beta (s_w/|y_w| - s_l/|y_l|)): length-normalised DPO (Tulu 3, Lambert et al. 2024, arXiv:2411.15124).
    Equals sigmoid at e = 0 for answers of one token; with a reference of probability 1 it is SimPO without a margin."""
    return -log_sigmoid(p.beta * (p.s_w / p.length_w - p.s_l / p.length_l))


def loss_sft(p: Pairs) -> Float[Array, "P"]:
    """-log pi(y_w|x)/|y_w|: the chosen answer's mean over its tokens, every pair counting the same.

    TRL's sft is a mean over the tokens of a micro-batch, so it changes with gradient accumulation. This one does not;
    it equals TRL's where all chosen answers are of one length, or a micro-batch is one pair. sft_token is TRL's mean
    over the whole optimiser batch.
    """
    return p.nll_w / p.length_w


def loss_sft_token(p: Pairs) -> Float[Array, "P"]:
    """-log pi(y_w|x)/n: n tokens are in a chosen answer on average over the optimiser batch, so that the mean over
    pairs is the mean over tokens, every token counting the same. n comes in the column chosen_length [B], which
    `chosen_length` makes from the loss masks of the whole batch. Equals TRL's sft without gradient accumulation."""
    return p.nll_w / jnp.where(p.present != 0, split_pairs(p.columns["chosen_length"])[0], 1.0)


def chosen_length(loss_mask: Float[ArrayLike, "*K B T"]) -> Float[Array, "*K B"]:
    """Tokens of a chosen answer, averaged over all pairs of the optimiser batch; the same for each row."""
    rows = loss_mask.reshape(-1, loss_mask.shape[-1])
    present = present_pairs(rows)
    tokens = jnp.sum(jnp.where(present != 0, jnp.sum(split_pairs(rows)[0], axis=-1), 0.0))
    return jnp.broadcast_to(tokens / jnp.maximum(jnp.sum(present), 1.0), loss_mask.shape[:-1])


LOSSES: dict[str, Callable[[Pairs], Array]] = {
    "sigmoid": loss_sigmoid, "hinge": loss_hinge, "ipo": loss_ipo, "ipo_sum": loss_ipo_sum, "robust": loss_robust,
    "exo_pair": loss_exo_pair, "nca_pair": loss_nca_pair, "bco_pair": loss_bco_pair, "sppo_hard": loss_sppo_hard,
    "aot": loss_aot, "aot_unpaired": loss_aot_unpaired, "apo_zero": loss_apo_zero, "apo_down": loss_apo_down,
    "discopop": loss_discopop, "sigmoid_norm": loss_sigmoid_norm, "sft": loss_sft, "sft_token": loss_sft_token}
"""by the names that --loss takes"""

COUPLED = frozenset({"aot", "aot_unpaired"})
"""losses that couple the rows of a batch, which therefore must not be split"""

REVERSE_KL_ONLY = frozenset({"nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"})
"""losses of D alone: under another divergence, the unknown normaliser of the reward cancels only in s_w - s_l"""

SCORES = frozenset({"x", "s_w", "s_l"})
"""what a loss reads of a divergence"""


def alpha_score(D: Float[Array, "*shape"], alpha: float) -> Float[Array, "*shape"]:
    """(u^(alpha-1) - 1)/(alpha-1), u = exp(D); log u at alpha 1."""
    if abs(alpha - 1) < 1e-6:
        return D
    return jnp.expm1(jnp.minimum((alpha - 1) * D, LARGEST_EXPONENT)) / (alpha - 1)


DIVERGENCES: dict[str, Callable[[Array, float], Array]] = {
    "reverse_kl": lambda D, alpha: D,
    "forward_kl": lambda D, alpha: alpha_score(D, 0.0),  # 1 - exp(-D)
    "js_divergence": lambda D, alpha: math.log(2.0) + log_sigmoid(D),
    "alpha_divergence": alpha_score}
"""D, alpha -> f'(exp(D)), 0 at D = 0. f-DPO (Wang et al. 2023, arXiv:2309.16240), whose alpha is 1 - ours (ours is
TRL's f_alpha_divergence_coef; at 0.5 they agree). alpha 1 is the reverse KL, alpha 0 the forward KL. Constants
cancel in s_w - s_l but not in losses that divide by the length; TRL has the same ones. Exponents end at
LARGEST_EXPONENT; in TRL, those of alpha_divergence only."""


def dpo(scores: Any, batch: dict[str, ArrayLike], losses: Sequence[tuple[str, float]] = (("sigmoid", 1.0),),
        beta: float = 0.1, label_smoothing: float = 0.0, divergence: str = "reverse_kl", alpha: float = 0.5,
        ld_alpha: float | None = None, wpo: bool = False, tau: float = 0.05) -> Loss:
    """Weighted sum of LOSSES on pairs of rows, laid out as objectives.pairs says; the unit is the pair.

    batch["ref_logps"] [B, T] is the reference's log p(y_t | y_<t). x = beta (s_w - s_l), S the logistic function, e
    `label_smoothing`; each loss's docstring has its equation and paper, DIVERGENCES the scores s.

    - `ld_alpha`: tokens beyond the shorter answer's length count `ld_alpha` in policy and reference (LD-DPO, Liu et al.
      2024, arXiv:2409.06411); at 1 nothing changes. Lengths stay whole. sft terms are not touched.
    - `wpo`: each pair's loss is weighted by w_w w_l, w = exp(mean_t[log p(y_t) - log sum_v p_v^2]), constants for the
      gradient (WPO, Zhou et al. 2024, arXiv:2406.11827, eq. 2, aligned to what the policy would sample). Needs
      scores.log_collision [B, T], log sum_v p_v^2. TRL weighs its batch-wide sft term as well, which differs from ours.
    - `tau`: DiscoPOP's temperature.

    Metrics: rewards beta D under the field's names, ties, logps, entropy; with several losses each as loss/NAME, before
    its weight. Raises ValueError as `check` says; KeyError for a column that is missing. AOT sorts the pairs that it is
    given, which must be the whole optimiser batch (`configure` marks that).
    """
    check(losses, beta, label_smoothing, divergence, wpo)
    mask = batch["loss_mask"]
    pairs = measure(scores, batch, beta, label_smoothing, divergence, alpha, ld_alpha, tau)
    weights = pairs.present * _wpo_weights(scores, mask) if wpo else pairs.present
    total, metrics = jnp.zeros((), pairs.D_w.dtype), {}
    for name, strength in losses:
        each = jnp.sum(jnp.where(pairs.present != 0, LOSSES[name](pairs) * weights, 0.0))
        total = total + strength * each
        metrics[f"loss/{name}"] = (jax.lax.stop_gradient(each), jnp.sum(pairs.present))
    metrics = metrics if len(losses) > 1 else {}
    metrics |= reward_metrics(beta * pairs.D_w, beta * pairs.D_l, pairs.present)
    metrics |= policy_metrics(scores, mask, pairs.logps_w, pairs.logps_l, pairs.present)
    return Loss(total, jnp.sum(pairs.present), metrics)


dpo.needs = ("ref_logps",)


def measure(scores: Any, batch: dict[str, ArrayLike], beta: float, label_smoothing: float, divergence: str,
            alpha: float, ld_alpha: float | None, tau: float) -> Pairs:
    """Sums and scores of every pair.

    Differences to the reference are taken by token, before the sum: a policy that is its reference has D of exactly 0
    (objectives.pairs.log_ratios).
    """
    mask, lengths = batch["loss_mask"], answer_lengths(batch["loss_mask"])
    counted = mask if ld_alpha is None else _desensitise(mask, ld_alpha)
    D = answer_sums(log_ratios(scores.logps, batch["ref_logps"]), counted)
    per_row = (DIVERGENCES[divergence](D, alpha), D, answer_sums(scores.logps, counted), lengths)
    sides = [side for rows in per_row for side in split_pairs(rows)]
    nll_w = -split_pairs(answer_sums(scores.logps, mask))[0]
    return Pairs(*sides, nll_w, present_pairs(mask), batch, beta, label_smoothing, tau)


def _desensitise(mask: Float[ArrayLike, "B T"], ld_alpha: float) -> Float[Array, "B T"]:
    """The mask with `ld_alpha` of what lies beyond the shorter answer of the pair."""
    position = jnp.cumsum(mask != 0, axis=-1)
    shared = jnp.repeat(jnp.minimum(*split_pairs(position[:, -1])), 2)
    return jnp.where(position <= shared[:, None], mask, ld_alpha * mask)


def _wpo_weights(scores: Any, mask: Float[ArrayLike, "B T"]) -> Float[Array, "P"]:
    aligned = jax.lax.stop_gradient(scores.logps - scores.log_collision)
    chosen, rejected = split_pairs(answer_means(aligned, mask))
    return jnp.exp(chosen + rejected)


def check(losses: Sequence[tuple[str, float]], beta: float = 0.1, label_smoothing: float = 0.0,
          divergence: str = "reverse_kl", wpo: bool = False) -> None:
    """Raises ValueError, in one line, for settings that make no loss."""
    names = [name for name, _ in losses]
    unknown, one_sided, sorting = set(names) - set(LOSSES), set(names) & REVERSE_KL_ONLY, set(names) & COUPLED
    found = [
        (not names, "no loss is named"),
        (unknown, f"no loss is called {', '.join(sorted(unknown))}; there are {', '.join(LOSSES)}"),
        (len(set(names)) < len(names), "a loss is named twice; give it one weight"),
        (not beta > 0, f"beta is {beta} but must be above 0"),
        (not 0 <= label_smoothing < 0.5, f"label smoothing is {label_smoothing} but must be at least 0 and below 0.5"),
        ("exo_pair" in names and label_smoothing == 0,
         "exo_pair is infinite without label smoothing, which is 0.001 in the paper"),
        (divergence not in DIVERGENCES, f"no divergence is called {divergence}; there are {', '.join(DIVERGENCES)}"),
        (divergence != "reverse_kl" and one_sided,
         f"{', '.join(sorted(one_sided))}: reverse_kl only, for other divergences give differences of scores alone"),
        (wpo and sorting, f"{', '.join(sorted(sorting))} pairs answers anew, so WPO's weights would belong to no pair"),
    ]
    problems = [message for wrong, message in found if wrong]
    if problems:
        raise ValueError(problems[0])


def unread(losses: Sequence[tuple[str, float]], divergence: str) -> dict[str, str]:
    """Settings that none of these losses reads -> where. A loss reads what its function names of the Pairs."""
    named = {name for loss, _ in losses for name in inspect.unwrap(LOSSES[loss]).__code__.co_names}
    readers = {"label_smoothing": {"label_smoothing"}, "divergence": SCORES, "alpha": SCORES,
               "ld_alpha": SCORES | {"D_w", "D_l", "logps_w", "logps_l"}}
    where = f"in the loss {', '.join(name for name, _ in losses)}"
    found = {setting: where for setting, reads in readers.items() if not reads & named}
    return found if divergence == "alpha_divergence" else {"alpha": f"with the divergence {divergence}"} | found


def configure(**settings: Any) -> Callable[[Any, dict[str, ArrayLike]], Loss]:
    """`dpo` with these settings, checked; its attribute couples_rows is True if it must see the whole optimiser batch,
    `needs` names the columns that it reads."""
    used = {"losses": (("sigmoid", 1.0),)} | settings
    check(**{name: used[name] for name in ("losses", "beta", "label_smoothing", "divergence", "wpo") if name in used})
    objective = functools.partial(dpo, **used)
    names = [name for name, _ in used["losses"]]
    objective.couples_rows = any(name in COUPLED for name in names)
    objective.needs = ("ref_logps", *(["chosen_length"] if "sft_token" in names else []))
    return objective
