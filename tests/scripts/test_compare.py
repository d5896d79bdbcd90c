"""scripts.compare's figures: curves by sampled tokens, intervals that pair problems, pairs for the reward model."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from errors import InputError
from scripts import compare

FIRST, SECOND = (f"rewards/{name}" for name in compare.VERIFIERS.split(","))


def write_evaluations(run, *evaluations):
    """Of steps 0, 2, ...: rows of (prompt, the verifiers' values, finish reason)."""
    lines = [{"step": 1, "sampled_tokens": 50}, {"step": 2, "sampled_tokens": 90}, {"step": 2, "eval/reward": 0.5}]
    samples = run / "eval" / "samples"
    samples.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number, rows in enumerate(evaluations):
        columns = dict(zip(("prompt", FIRST, SECOND, "finish_reason"), zip(*rows)))
        types = {FIRST: pa.float64(), SECOND: pa.float64()}
        pq.write_table(pa.table({name: pa.array(column, types.get(name, pa.string()))
                                 for name, column in columns.items()}), samples / f"step-{2 * number:06d}.parquet")


def test_a_curve_is_of_different_problems_by_sampled_tokens(tmp_path):
    write_evaluations(tmp_path, [("a", 0.0, None, "stop"), ("b", None, 1.0, "length"), ("a", 1.0, None, "stop")],
                      [("b", None, 1.0, "stop"), ("a", 1.0, None, "stop"), ("a", 1.0, None, "stop")])
    curve = compare.read_curve(tmp_path)
    assert curve == {0: {"a": 0.5, "b": 1}, 90: {"a": 1, "b": 1}}
    assert compare.at_budget(curve, 90) == curve[90]
    assert compare.at_budget(curve, 36) == pytest.approx({"a": 0.7, "b": 1})


def test_an_answer_without_a_verdict_is_neither_right_nor_wrong(tmp_path):
    """A verifier failed on b, whatever the weights of rewards; the engine on d, whose unfinished answer has a verdict.
    """
    write_evaluations(tmp_path / "run", [("a", 1.0, None, "stop"), ("b", None, None, "stop"), ("c", 0.0, None, "stop"),
                                         ("d", 0.0, None, "error")])
    curve = compare.read_curve(tmp_path / "run")
    assert str(curve) == "{0: {'a': 1.0, 'b': nan, 'c': 0.0, 'd': nan}}"
    other = {0: {"d": 1.0, "c": 1.0, "b": 1.0, "a": 1.0}}
    figures = compare.by_method({("A", 0): curve, ("B", 0): other}, [0], 0)
    text = compare.table(figures, 0)
    assert "2 different problems (2 left out: some answer has no verdict)" in text
    assert [line.split(" | ")[2:] for line in text.splitlines()[4:6]] == [["50.0%", "2 |"], ["100.0%", "0 |"]]
    assert text.endswith("\n\n| | A |\n|---|---|\n| B | +50.0% (+0.0% to +100.0%) |\n")
    with pytest.raises(InputError, match="no held-out problem has a verdict"):
        compare.table({"A": figures["A"][:, 1:2]}, 0)
    write_evaluations(tmp_path / "none", [("a", None, None, "stop")])
    with pytest.raises(InputError, match="step-000000.parquet: none of its answers has a verdict"):
        compare.read_curve(tmp_path / "none")


def test_paired_intervals_are_narrower_and_hold_what_they_should():
    random = np.random.default_rng(0)
    base = (random.random((3, 200)) < 0.5).astype(float)
    better = np.where(random.random((3, 200)) < 0.15, 1.0, base)
    low, high = compare.interval(better - base, np.random.default_rng(0), 300)
    assert 0 < low < (better - base).mean() < high < 0.15
    alone = compare.interval(better, np.random.default_rng(0), 300)
    assert high - low < alone[1] - alone[0]
    text = compare.table({"A": base[:, :20], "B": better[:, :20], "C": base[:, :20]}, 1234)
    assert "| B | +" in text
    assert text.splitlines()[-1].startswith("| C | +0.0% (+0.0% to +0.0%) | -")
    assert "after 1,234 sampled tokens; 3 seeds, 20 different problems (0 left out" in text
    assert f"{better[:, :20].mean():.1%}" in text


@pytest.mark.slow
def test_a_panel_of_each_method_is_drawn(tmp_path):
    curves = {(name, seed): {0: {"a": 0.0, "b": np.nan}, 100 + seed: {"a": 1.0, "b": 0.0}}
              for name in compare.METHODS for seed in (0, 1)}
    compare.plot(tmp_path / "plot.png", curves, (0, 1), 100)
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_pairs_are_of_right_and_wrong_answers_to_one_problem(tmp_path):
    rows = [(0, "q", "4", 1.0), (0, "q", "4", 1.0), (0, "q", "5", 0.0), (0, "q", "6", 0.0), (1, "p", "1", 0.0),
            (1, "p", "2", None)]
    names = ("group", "prompt", "completion", "reward")
    pq.write_table(pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)}),
                   tmp_path / "s.parquet")
    [pair] = compare.right_and_wrong(tmp_path / "s.parquet")
    assert [pair[side][0]["content"] for side in ("prompt", "chosen", "rejected")] == ["q", "4", "5"]


def test_every_method_is_flags_of_its_script():
    from cli.parsing import parse
    from cli.values import check_values
    from scripts import grpo, ppo

    for script, flags in compare.METHODS.values():
        module = {"grpo": grpo, "ppo": ppo}[script]
        made = parse(module.Config, ["--config", str(compare.RECIPE), *flags], "")
        check_values(made)
        module.check(made)
        assert made.max_steps * made.batch_size > 0


@pytest.mark.parametrize(("flags", "line"), [
    ({"seeds": ()}, "--seeds"), ({"seeds": (1, 1)}, "--seeds 1 1: give one or more, each once"),
    ({"seeds": (-1,)}, "--seed must be from 0"), ({"max_steps": 0}, "--max-steps must be above 0")])
def test_flags_that_compare_nothing_are_refused_before_any_run(tmp_path, flags, line):
    with pytest.raises(InputError, match=line):
        compare.main(compare.Config(output_dir=str(tmp_path / "new"), **flags))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_script_that_fails_ends_it_in_one_line():
    with pytest.raises(InputError, match="scripts.export failed"):
        compare.start("export", "--model", "nowhere")
