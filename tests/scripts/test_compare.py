"""scripts.compare's figures: curves by sampled tokens, intervals that pair problems, pairs for the reward model."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from errors import InputError
from scripts import compare


def test_a_curve_is_of_problems_by_sampled_tokens(tmp_path):
    lines = [{"step": 1, "sampled_tokens": 50}, {"step": 2, "sampled_tokens": 90}, {"step": 2, "eval/reward": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = tmp_path / "eval" / "samples"
    samples.mkdir(parents=True)
    first, second = (f"rewards/{name}" for name in compare.VERIFIERS.split(","))
    for step, right in ((0, [0.0, None, 1.0]), (2, [1.0, None, 1.0])):
        pq.write_table(pa.table({"group": [2, 1, 0], first: pa.array(right, pa.float64()),
                                 second: pa.array([None, 1.0, None], pa.float64())}),
                       samples / f"step-{step:06d}.parquet")
    curve = compare.read_curve(tmp_path)
    assert {tokens: right.tolist() for tokens, right in curve.items()} == {0: [1, 1, 0], 90: [1, 1, 1]}
    assert compare.at_budget(curve, 89).tolist() == [1, 1, 0]
    assert compare.at_budget(curve, 90).tolist() == [1, 1, 1]


def test_paired_intervals_are_narrower_and_hold_what_they_should():
    random = np.random.default_rng(0)
    base = (random.random((3, 200)) < 0.5).astype(float)
    better = np.where(random.random((3, 200)) < 0.15, 1.0, base)
    low, high = compare.interval(better - base, np.random.default_rng(0), 300)
    assert 0 < low < (better - base).mean() < high < 0.15
    alone = compare.interval(better, np.random.default_rng(0), 300)
    assert high - low < alone[1] - alone[0]
    text = compare.table({"A": base[:, :20], "B": better[:, :20]}, 1234)
    assert "after 1,234 sampled tokens; 3 seeds, 20 problems" in text
    assert f"{better[:, :20].mean():.1%}" in text
    assert text.count("difference to A") == 1


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
