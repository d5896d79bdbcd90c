"""Curves: no peak is lost by thinning, eval metrics lie where training stood, namesakes are drawn together."""

import json
import math

import numpy as np
import pytest

from reports.curves import Axes, Curve, as_traces, charts, read_curves, thin
from reports.run import Run


def run_of(metrics):
    return Run(None, "run", {}, [], metrics, {})


def test_thinning_keeps_every_peak_and_both_ends():
    values = np.random.default_rng(0).standard_normal(100_000)
    values[50_001], values[77_777] = 50, -60
    places = thin(values, 1000)
    assert len(places) <= 1002
    assert {0, 50_001, 77_777, 99_999} <= {*places.tolist()}
    assert places.tolist() == sorted({*places.tolist()})
    assert thin(values[:1000], 1000).tolist() == list(range(1000))


def test_a_value_that_is_not_finite_is_a_gap_and_is_told():
    lines = [{"step": step, "loss": None if step == 3 else 1.0 * step, "num_tokens": step} for step in range(1, 6)]
    run = run_of(lines)
    [chart], _ = charts([read_curves(run, 0)])
    drawn = as_traces(chart, [Axes(lines)])
    assert drawn["traces"][0]["y"] == [1, 2, None, 4, 5]
    assert drawn["lost"] == 1
    json.dumps(drawn, allow_nan=False)
    places = thin(np.full(3000, math.nan), 100)
    assert {0, 2999} <= {*places.tolist()}


def test_evaluations_lie_where_training_stood():
    lines = [{"step": 0, "eval/loss": 3.0}, {"step": 1, "loss": 2, "num_tokens": 10, "step_seconds": 3600},
             {"step": 2, "loss": 1, "num_tokens": 25, "step_seconds": 1800}, {"step": 2, "eval/loss": 1.5}]
    at = Axes(lines).at(read_curves(run_of(lines), 0)["eval/loss"].steps)
    assert at == {"step": [0, 2], "tokens": [0, 25], "hours": [0, 1.5]}


def test_namesakes_are_drawn_together():
    names = ["loss", "eval/loss", "rewards/a/mean", "eval/rewards/a/mean", "rewards/b/mean", "eval/gsm8k/exact_match",
             "entropy", "eval/entropy", "eval/perplexity"]
    curves = {name: Curve(0, name, np.arange(2), np.arange(2.0)) for name in names}
    main, further = charts([curves])
    assert {chart.title: [curve.name for curve in chart.curves] for chart in (*main, *further)} == {
        "loss": ["loss", "eval/loss"], "rewards": ["rewards/a/mean", "rewards/b/mean", "eval/rewards/a/mean"],
        "benchmarks": ["eval/gsm8k/exact_match"], "entropy": ["entropy", "eval/entropy"],
        "eval/perplexity": ["eval/perplexity"]}
    assert [chart.title for chart in main] == ["loss", "rewards", "benchmarks"]


@pytest.mark.parametrize(("values", "line"), [
    ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"), ([2, 2, 2], "▁▁▁"), ([0, math.nan, 1], "▁ █"), ([math.nan], " ")])
def test_sparklines(values, line):
    from reports.text import sparkline

    assert sparkline(np.asarray(values, float)) == line
