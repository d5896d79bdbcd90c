"""How sure a figure is: means of questions with intervals, differences in pairs, pass@k and its like. Pure functions.

A question may be answered several times, and questions may come in families (a passage's, a template's); neither are
independent. So values are averaged by question first, every question counts alike, and errors are those of families:

    SE^2 = C / (C - 1) * sum over C families of (sum over its questions of (x_q - mean))^2 / n^2

(Miller 2024, arXiv:2411.00640, section 2.2), which is the usual one where each question is a family of its own. Values
from 0 to 1 have Wilson's interval, for as many independent questions as they are worth; it holds for few of them and at
0 and 100 %, where errors of the central limit theorem do not (Bowyer et al. 2025, arXiv:2503.01747).
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean over questions."""

    n: int
    """questions"""
    mean: float
    standard_error: float
    low: float
    high: float


class Difference(NamedTuple):
    """What one model's mean is above another's, on the same questions."""

    n: int
    """questions that both have values of"""
    mean: float
    standard_error: float
    low: float
    high: float
    wins: int
    """families in which the second model does better; questions, where each is its own family"""
    losses: int
    p_value: float
    """of the exact sign test, which is McNemar's for values of 0 and 1"""
    noise: bool
    """whether the two may well be equally good"""
    detectable: float
    """the difference that would be found with 80 % power by as many questions"""


class Questions(NamedTuple):
    """Values by question."""

    means: np.ndarray
    """[n], over a question's samples"""
    families: np.ndarray
    """[n], numbers of families from 0"""
    num_samples: int
    """of all questions"""
    bounded: bool
    """whether all values are from 0 to 1"""
    ids: list[Hashable]

    @property
    def num_families(self) -> int:
        return int(self.families.max(initial=-1)) + 1


def by_question(values: Sequence[float], questions: Sequence[Hashable],
                families: Sequence[Hashable] | None = None) -> Questions:
    """Values of samples as means of questions; a question is its own family unless `families` says otherwise."""
    families = questions if families is None else families
    numbers = {question: number for number, question in enumerate(dict.fromkeys(questions))}
    family_of = dict(zip(questions, families, strict=True))
    family_numbers = {family: number for number, family in enumerate(dict.fromkeys(family_of.values()))}
    rows = np.asarray([numbers[question] for question in questions], np.int64)
    given = np.asarray(values, np.float64)
    counts = np.bincount(rows, minlength=len(numbers))
    means = np.bincount(rows, given, minlength=len(numbers)) / np.maximum(counts, 1)
    return Questions(means, np.asarray([family_numbers[family_of[question]] for question in numbers], np.int64),
                     len(given), bool(((given >= 0) & (given <= 1)).all()), list(numbers))


def estimate(values: Sequence[float], questions: Sequence[Hashable], families: Sequence[Hashable] | None = None,
             level: float = LEVEL) -> Estimate:
    """The mean of samples' values over questions, with an interval; NaN where there are none.

    Values outside 0 to 1 have Student's interval with C - 1 degrees of freedom, which is endless for one family.
    """
    grouped = by_question(values, questions, families)
    n = len(grouped.means)
    if not n:
        return Estimate(0, math.nan, math.nan, math.nan, math.nan)
    mean, error = float(grouped.means.mean()), clustered_error(grouped.means, grouped.families)
    if grouped.bounded:
        low, high = wilson(mean, effective_questions(grouped, mean, error, level), level)
    else:
        spread = _t(level, grouped.num_families - 1) * error if grouped.num_families > 1 else math.inf
        low, high = mean - spread, mean + spread
    return Estimate(n, mean, error, low, high)


def ratio(sums: Sequence[float], weights: Sequence[float], level: float = LEVEL) -> Estimate:
    """sum s / sum w over rows, such as nats a token, with Student's interval; a row's parts hang together, so that

        SE^2 = R / (R - 1) * sum over R rows of (s_r - mean * w_r)^2 / (sum w)^2

    (the linearised ratio estimator: Cochran 1977, section 6.4). NaN without weight, endless for one row."""
    s, w = (np.asarray(each, np.float64)[np.asarray(weights) > 0] for each in (sums, weights))
    if not len(w):
        return Estimate(0, math.nan, math.nan, math.nan, math.nan)
    mean = float(s.sum() / w.sum())
    if len(w) < 2:
        return Estimate(1, mean, math.nan, -math.inf, math.inf)
    error = math.sqrt(len(w) / (len(w) - 1) * float(((s - mean * w) ** 2).sum())) / float(w.sum())
    spread = _t(level, len(w) - 1) * error
    return Estimate(len(w), mean, error, mean - spread, mean + spread)


def wilson(share: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a share of n (Wilson 1927), which need not be whole: (n p + z^2 / 2 -+ z sqrt(n p (1 - p) +
    z^2 / 4)) / (n + z^2)."""
    z = _z(level)
    centre, spread = n * share + z**2 / 2, z * math.sqrt(max(0.0, n * share * (1 - share)) + z**2 / 4)
    return max(0.0, (centre - spread) / (n + z**2)), min(1.0, (centre + spread) / (n + z**2))


def clustered_error(means: np.ndarray, families: np.ndarray) -> float:
    """The standard error of the questions' mean, by families (see the module); NaN where there is one alone."""
    sums = np.bincount(families, means - means.mean())
    if len(sums) < 2:
        return math.nan
    return math.sqrt(len(sums) / (len(sums) - 1) * float((sums**2).sum())) / len(means)


def effective_questions(grouped: Questions, mean: float, error: float, level: float = LEVEL) -> float:
    """How many independent answers, right or wrong, would be as sure: n / deff, deff being SE^2 over that of as many
    independent ones, and at most one a sample; as few families are unsure of their own error, over
    (t_(C-1) / t_(N-1))^2 for N samples (Korn and Graubard 1998). Where nothing varies, and in a single family, a family
    counts as one answer.
    """
    n, num_families = len(grouped.means), grouped.num_families
    if not error > 0:
        return float(num_families)
    number = min(grouped.num_samples, n * mean * (1 - mean) / (n - 1) / error**2)
    return number / _few_families(grouped.num_samples, num_families, level) ** 2


def difference(before: Questions, after: Questions, level: float = LEVEL) -> Difference:
    """after - before, in pairs, over the questions that both have.

    Values from 0 to 1 have the interval of Bonett and Price (2012): one question more is won, and one lost, so that it
    holds where few differ or none; families that hang together count as more of a question. Others have Student's.
    It is noise where the interval has 0 and where, all differences being of one size, p is not below 1 - level.
    """
    deltas, families = _paired(before, after)
    n = len(deltas)
    if not n:
        return Difference(0, *[math.nan] * 4, 0, 0, 1.0, True, math.nan)
    if before.bounded and after.bounded:
        centre, error, quantile = _with_one_more_each(deltas, families, level)
        low, high = max(-1.0, centre - quantile * error), min(1.0, centre + quantile * error)
    else:
        error, num_families = clustered_error(deltas, families), families.max() + 1
        spread = _t(level, num_families - 1) * error if num_families > 1 else math.inf
        low, high = deltas.mean() - spread, deltas.mean() + spread
    sums = np.bincount(families, deltas)
    sums = sums[np.abs(sums) > 1e-12]
    wins, losses = int((sums > 0).sum()), int((sums < 0).sum())
    p_value = sign_test(wins, losses)
    same_size = bool(np.ptp(np.abs(sums)) < 1e-12) if len(sums) else True
    noise = bool(low <= 0 <= high) or (same_size and p_value >= 1 - level)
    return Difference(n, float(deltas.mean()), float(error), float(low), float(high), wins, losses, p_value, noise,
                      minimal_detectable_difference(float(error), level))


def _paired(before: Questions, after: Questions) -> tuple[np.ndarray, np.ndarray]:
    """(differences [n], families [n] from 0) of the questions of both."""
    rows = {question: row for row, question in enumerate(after.ids)}
    pairs = [(row, rows[question]) for row, question in enumerate(before.ids) if question in rows]
    first, second = np.asarray(pairs, np.int64).reshape(-1, 2).T
    return after.means[second] - before.means[first], np.unique(before.families[first], return_inverse=True)[1]


def _with_one_more_each(deltas: np.ndarray, families: np.ndarray, level: float) -> tuple[float, float, float]:
    """(centre, error, quantile) of Bonett's and Price's interval. The question won and the one lost that are added have
    the weight of as many questions of a family as are worth one independent one: how much larger SE^2 is by families.
    """
    n, num_families = len(deltas), int(families.max()) + 1
    alone, together = clustered_error(deltas, np.arange(n)), clustered_error(deltas, families)
    weight = min(max(1.0, (together / alone) ** 2), n / num_families) if alone > 0 < together else n / num_families
    centre = float(deltas.sum()) / (n + 2 * weight)
    sums = np.bincount(families, deltas - centre)
    error = math.sqrt(float((sums**2).sum()) + 2 * weight**2 * (1 + centre**2)) / (n + 2 * weight)
    return centre, error, _z(level) * _few_families(n, num_families, level)


def _few_families(n: int, num_families: int, level: float) -> float:
    """t_(C-1) / t_(n-1): how much less sure an error is that C families tell, and not n values."""
    if num_families == n:
        return 1.0
    return math.inf if num_families == 1 else _t(level, num_families - 1) / _t(level, n - 1)


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p of so many wins and losses being even: McNemar's exact test, of discordant pairs."""
    n = wins + losses
    return min(1.0, 2 * float(special.bdtr(min(wins, losses), n, 0.5))) if n else 1.0


def minimal_detectable_difference(standard_error: float, level: float = LEVEL, power: float = 0.8) -> float:
    """(z_(level) + z_(power)) * SE: a true difference of so much is told from none with this power (Miller 2024,
    section 5)."""
    return (_z(level) + float(special.ndtri(power))) * standard_error


def planned_error(n: int, between: float, within: Sequence[float] = (0.0, 0.0),
                  num_samples: Sequence[int] = (1, 1)) -> float:
    """The standard error of a difference that n questions would have: sqrt((w + s_a / K_a + s_b / K_b) / n), w being
    the variance over questions of what the two differ by, s that of a question's samples (Miller 2024, section 5)."""
    return math.sqrt((between + sum(each / k for each, k in zip(within, num_samples, strict=True))) / n)


# ---------------------------------------------------------------------------------- several samples of a question


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that one of k of the n samples is right, unbiased (Chen et al. 2021).

    Raises ValueError, as the two below do, unless 1 <= k <= n."""
    _check_k(n, k)
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def pass_hat_k(n: int, correct: int, k: int) -> float:
    """pass^k, C(c, k) / C(n, k): the chance that all of k of the n samples are right (Yao et al. 2024)."""
    _check_k(n, k)
    return math.comb(correct, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[Any], k: int) -> float:
    """maj@k: the chance that the commonest answer among k of the n samples is right, over all ways to take k. Those
    that are equally common are equally likely to be taken; None, no answer, has no vote. Where k is less than n this
    counts choices, which takes seconds for a hundred answers of a few kinds."""
    _check_k(len(answers), k)
    votes = Counter(answers)
    silent = votes.pop(None, 0)
    right: Counter[Hashable] = Counter()
    for answer, verdict in zip(answers, correct, strict=True):
        right[answer] += float(verdict)
    if k == len(answers):  # one choice
        first = [answer for answer in votes if votes[answer] == max(votes.values())]
        return sum(right[answer] / votes[answer] for answer in first) / max(1, len(first))
    total = sum(right[answer] / count * _ways_to_win(count, [votes[other] for other in votes if other != answer],
                                                     silent, k)
                for answer, count in votes.items() if right[answer])
    return total / math.comb(len(answers), k)


def _check_k(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k {k} of {n} samples: give 1 to {n}")


def _ways_to_win(count: int, others: Sequence[int], silent: int, k: int) -> float:
    """Choices of k samples in which an answer with `count` samples comes first, shared ones in equal parts."""
    total = 0.0
    for votes in range(1, min(count, k) + 1):
        ways = {(0, 0): math.comb(count, votes)}  # (samples of others, how many of them have as many votes) -> choices
        for other in others:
            ways = _chosen_too(ways, other, votes, k - votes)
        total += sum(number * math.comb(silent, k - votes - taken) / (1 + ties)
                     for (taken, ties), number in ways.items())
    return total


def _chosen_too(ways: dict[tuple[int, int], int], other: int, votes: int, room: int) -> dict[tuple[int, int], int]:
    """The choices with some of another answer's samples, at most as many as `votes`."""
    further: dict[tuple[int, int], int] = {}
    for (taken, ties), number in ways.items():
        for some in range(min(other, votes, room - taken) + 1):
            key = taken + some, ties + (some == votes)
            further[key] = further.get(key, 0) + number * math.comb(other, some)
    return further


def _z(level: float) -> float:
    return float(special.ndtri((1 + level) / 2))


def _t(level: float, degrees: int) -> float:
    return float(special.stdtrit(degrees, (1 + level) / 2))
