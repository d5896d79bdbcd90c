"""A task's figures: what is counted, what is left out, and what several answers say."""

import dataclasses

import pytest
from answered import answered

from evals.figures import figures_of


def test_what_failed_is_left_out_of_the_mean_and_counted():
    samples = answered(values=[1.0, 0.0, 1.0, None, float("nan"), float("inf")])
    samples[1].finish_reason = "error"  # of the engine: its 0 is no verdict
    [figure] = figures_of(samples)
    assert (figure.estimate.n, figure.estimate.mean, figure.failed) == (2, 1.0, pytest.approx(4 / 6))


def test_what_was_cut_or_is_empty_is_counted():
    samples = answered(values=[1.0, 0.0, 0.0, 0.0])
    samples[1].finish_reason, samples[2].completion = "length", " \n"
    [figure] = figures_of(samples)
    assert (figure.truncated, figure.empty, figure.failed) == (0.25, 0.25, 0.0)
    assert figure.estimate.mean == 0.25  # cut answers count as they were judged


def test_log_likelihoods_have_no_answers_to_cut():
    [figure] = figures_of(answered(finish_reason="", completion=""))
    assert (figure.truncated, figure.empty) == (None, None)


def test_several_answers_have_figures_of_all_of_them():
    values = [1, 1, 0, 0, 0, 0, 1, 1]  # two of four, and two of four
    samples = answered(values=map(float, values), repeats=4)
    for sample, answer in zip(samples, "aabcdaaa"):
        sample.answer = answer
    found = {figure.of_k: figure for figure in figures_of(samples)}
    assert {name: figure.estimate.mean for name, figure in found.items()} == {
        "": 0.5, "pass@4": 1.0, "pass^4": 0.0, "pass@2": pytest.approx(5 / 6), "pass^2": pytest.approx(1 / 6),
        "maj@4": pytest.approx((1 + 2 / 3) / 2)}
    assert [name for name, figure in found.items() if not figure.of_all] == ["pass@2", "pass^2"]
    assert found[""].num_samples == 4
    assert found["pass@4"].estimate.n == 2


def test_shares_of_marks_have_a_mean_alone():
    assert [figure.of_k for figure in figures_of(answered(values=[0.5, 1.0], repeats=2))] == [""]


def test_a_question_with_a_failed_answer_has_no_pass_at_k():
    samples = answered(values=[1.0, 0.0, 1.0, None], repeats=2)
    found = {figure.of_k: figure.estimate for figure in figures_of(samples)}
    assert (found["pass@2"].n, found[""].n) == (1, 2)


def test_families_make_figures_less_sure():
    alone = answered(values=[1.0] * 20 + [0.0] * 20)
    families = [dataclasses.replace(sample, family=str(number // 10)) for number, sample in enumerate(alone)]
    [[narrow], [wide]] = figures_of(alone), figures_of(families)
    assert wide.estimate.standard_error > 2 * narrow.estimate.standard_error
