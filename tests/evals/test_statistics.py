"""Figures against scipy, published numbers and brute force, and intervals against what they promise."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from evals.statistics import (
    by_question,
    clustered_error,
    difference,
    estimate,
    maj_at_k,
    minimal_detectable_difference,
    pass_at_k,
    pass_hat_k,
    planned_error,
    sign_test,
    wilson,
)


def compared(before, after, families=None):
    questions = range(len(before))
    return difference(by_question(before, questions, families), by_question(after, questions, families))


@pytest.mark.parametrize(("right", "n"), [(0, 1), (0, 7), (3, 7), (120, 164), (164, 164)])
def test_shares_have_wilsons_interval(right, n):
    wanted = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((wanted.low, wanted.high))
    got = estimate([1] * right + [0] * (n - right), range(n))
    assert (got.n, got.low, got.high) == (n, pytest.approx(wanted.low), pytest.approx(wanted.high))


def test_numbers_of_any_size_have_students_interval():
    values = [3.5, -1.0, 12.0, 7.25, 0.5]
    wanted = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    got = estimate(values, range(5))
    assert (got.low, got.high) == pytest.approx(wanted)
    assert got.standard_error == pytest.approx(stats.sem(values))


def test_errors_of_families_are_millers_double_sum():
    """arXiv:2411.00640, equation 4, but for C / (C - 1) in place of n / (n - 1)."""
    generator = np.random.default_rng(0)
    values, families = generator.random(40), generator.integers(0, 9, 40)
    off = values - values.mean()
    double = sum(off[i] * off[j] for i, j in itertools.product(range(40), repeat=2) if families[i] == families[j])
    assert clustered_error(values, families) == pytest.approx(math.sqrt(9 / 8 * double) / 40)


def test_samples_of_a_question_count_as_its_mean():
    """Each question as one, however many samples it has; and no more sure than as many questions allow."""
    got = estimate([1, 1, 0, 0, 1], ["a", "a", "a", "a", "b"])
    assert (got.n, got.mean) == (2, 0.75)
    for repeats in (2, 50):  # all samples of a question alike: nothing is learned from further ones
        again, once = estimate([1] * repeats + [0] * 3 * repeats, np.repeat(range(4), repeats)), wilson(0.25, 4)
        assert again.low <= once[0] < once[1] <= again.high
    assert estimate(np.repeat([1] + [0] * 99, 8), np.repeat(range(100), 8)).high == pytest.approx(
        wilson(0.01, 100)[1], rel=0.03)
    assert estimate([0] * 40, np.repeat(range(4), 10)).high == pytest.approx(wilson(0, 4)[1])


def test_families_that_hang_together_are_worth_one_question_each():
    together = np.repeat([1, 0, 1, 1, 0, 1, 0, 1, 1, 1], 12)
    families = np.repeat(range(10), 12)
    wide, narrow = estimate(together, range(120), families), estimate(together, range(120))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert estimate([1] * 8, range(8), [0] * 8).low == pytest.approx(wilson(1, 1)[0])


def test_nothing_and_a_single_question_are_no_error():
    assert estimate([], []).n == 0
    assert estimate([1.0], ["a"])[1:2] == (1.0,)
    assert estimate([1.0], ["a"]).low == pytest.approx(wilson(1, 1)[0])
    assert math.isinf(estimate([7.0], ["a"]).high)


@pytest.mark.parametrize(("n", "share", "repeats", "spread"), [(8, 0.05, 1, 0), (20, 0.5, 1, 0), (60, 0.95, 1, 0),
                                                               (30, 0.3, 4, 0.4), (15, 0.9, 8, 0.3)])
def test_intervals_hold_as_often_as_they_say(n, share, repeats, spread):
    """Over 1,000 evaluations, questions being of different difficulty where they are asked again (`spread`)."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        concentration = (1 / spread**2 - 1) if spread else 1e9
        chances = generator.beta(share * concentration, (1 - share) * concentration, n) if spread else share
        values = generator.binomial(1, np.broadcast_to(chances, (repeats, n))).T.ravel()
        got = estimate(values, np.repeat(range(n), repeats))
        held += got.low <= share <= got.high
    assert held >= 925


def test_pairs_have_mcnemars_test_and_bonetts_and_prices_interval():
    """21 children before and after a transplantation: 1, 1, 7 and 12 (Bentur et al. 2009, as in Fagerland 2014)."""
    before = [1] * 1 + [1] * 1 + [0] * 7 + [0] * 12
    after = [1] * 1 + [0] * 1 + [1] * 7 + [0] * 12
    got = compared(before, after)
    assert (got.wins, got.losses, got.n) == (7, 1, 21)
    assert got.p_value == pytest.approx(stats.binomtest(1, 8).pvalue) == pytest.approx(0.0703, abs=1e-4)
    won, lost = 8 / 23, 2 / 23
    spread = stats.norm.ppf(0.975) * math.sqrt((won + lost - (won - lost) ** 2) / 23)
    assert (got.low, got.high) == pytest.approx((won - lost - spread, won - lost + spread))
    assert got.mean == pytest.approx(6 / 21)
    assert got.noise  # the interval alone, from 0.013, would not say so


def test_no_difference_is_within_noise_and_not_without_an_interval():
    got = compared([0] * 50, [0] * 50)
    assert got.low < 0 < got.high
    assert (got.mean, got.noise, got.p_value) == (0, True, 1.0)
    assert got.high < 0.08
    assert not compared([0] * 50, [1] * 50).noise


def test_differences_of_families_are_less_sure():
    """The same 60 questions, won all together in families, or each by itself."""
    before, after = [0] * 60, [1] * 20 + [0] * 40
    alone, together = compared(before, after), compared(before, after, np.repeat(range(6), 10))
    assert (alone.wins, together.wins) == (20, 2)
    assert not alone.noise
    assert together.noise
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert compared(before, after, [0] * 60).low == -1  # one family tells nothing


def test_unbounded_differences_have_students_interval():
    before, after = [2.0, 5.0, -3.0, 8.0], [2.5, 5.75, -2.0, 9.5]
    got = compared(before, after)
    assert (got.low, got.high) == pytest.approx(stats.ttest_rel(after, before).confidence_interval())
    assert not got.noise  # p of the sign test is 0.125, but these are no wins of one size


@pytest.mark.parametrize(("n", "p_won", "p_lost"), [(10, 0.0, 0.0), (12, 0.3, 0.1), (40, 0.02, 0.02), (100, 0.2, 0.05)])
def test_paired_intervals_hold_as_often_as_they_say(n, p_won, p_lost):
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(1000):
        delta = generator.choice([1, 0, -1], n, p=[p_won, 1 - p_won - p_lost, p_lost])
        got = compared((delta < 0).astype(int), (delta > 0).astype(int))
        held += got.low <= p_won - p_lost <= got.high
    assert held >= 925


def test_pairs_are_matched_by_question_not_by_order():
    first = by_question([1, 0, 1], ["a", "b", "c"])
    second = by_question([0, 1, 1, 0], ["c", "b", "a", "d"])
    got = difference(first, second)
    assert (got.n, got.mean, got.wins, got.losses) == (3, 0, 1, 1)
    assert difference(first, by_question([1], ["d"])).n == 0


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 0), (3, 4), (40, 22)])
def test_the_sign_test_is_exact(wins, losses):
    n = wins + losses
    enumerated = sum(math.comb(n, k) for k in range(n + 1) if math.comb(n, k) <= math.comb(n, wins)) / 2**n
    assert sign_test(wins, losses) == pytest.approx(enumerated)


def test_969_questions_tell_three_points():
    """Miller 2024, section 5: w^2 = 1/9 and no variance of samples."""
    assert minimal_detectable_difference(planned_error(969, 1 / 9)) == pytest.approx(0.03, abs=1e-5)
    assert planned_error(100, 1 / 9, (1 / 6, 1 / 6), (4, 2)) == pytest.approx(math.sqrt(1 / 9 + 1 / 24 + 1 / 12) / 10)


@pytest.mark.parametrize("correct", range(6))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_and_pass_hat_k_are_means_over_all_choices(correct, k):
    verdicts = [True] * correct + [False] * (5 - correct)
    choices = list(itertools.combinations(verdicts, k))
    assert pass_at_k(5, correct, k) == pytest.approx(np.mean([any(each) for each in choices]))
    assert pass_hat_k(5, correct, k) == pytest.approx(np.mean([all(each) for each in choices]))


@pytest.mark.parametrize("answers", ["aabbc", "abcde", "aaabb", "aab--", "-----", "abbcc"])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_maj_at_k_is_the_mean_over_all_choices(answers, k):
    """A choice's commonest answers are equally likely to be taken; b is right."""
    votes, total, number = [None if each == "-" else each for each in answers], Fraction(0), 0
    for choice in itertools.combinations(votes, k):
        counts = {each: choice.count(each) for each in choice if each is not None}
        first = [each for each, count in counts.items() if count == max(counts.values())]
        total += Fraction("b" in first, len(first) or 1)
        number += 1
    assert maj_at_k(votes, [each == "b" for each in votes], k) == pytest.approx(float(total / number))


@pytest.mark.parametrize("k", [0, 4])
def test_more_samples_than_there_are_cannot_be_chosen(k):
    for of in (pass_at_k, pass_hat_k):
        with pytest.raises(ValueError, match=f"k {k} of 3 samples"):
            of(3, 1, k)
    with pytest.raises(ValueError, match=f"k {k} of 3 samples"):
        maj_at_k("abb", [1, 0, 0], k)
