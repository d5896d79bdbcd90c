"""What make grpo shows, from a run's metrics; and that its recipe is one that scripts.grpo takes."""

import json

from cli.parsing import parse_recipe
from scripts import grpo
from scripts.arithmetic import RECIPE, eval_problems, interval, report


def test_the_recipe_is_read_and_its_eval_problems_are_others():
    recipe = parse_recipe(grpo.Config, RECIPE)
    grpo.check(recipe)
    assert len(eval_problems(recipe)) == 120
    assert {each.source for each in recipe.data}.isdisjoint(each.source for each in recipe.eval_data)


def test_intervals_are_wilsons():
    assert interval(0.5, 100) == "95 %: 40.4% to 59.6%"
    assert interval(1.0, 10) == "95 %: 72.2% to 100.0%"


def test_the_report_shows_before_after_and_a_picture(tmp_path, capsys):
    held_out = {"eval/rewards/gym_exact:chain_sum/mean": 0.4, "eval/rewards/gym_exact:products/mean": 0.5}
    lines = [{"step": 0, "eval/reward": 0.45} | held_out,
             *({"step": step, "loss": 0.0, "reward": step / 10, "rewards/gym_exact:products/mean": step / 10,
                "completions/mean_length": 9.0} for step in range(1, 6)),
             {"step": 5, "eval/reward": 0.9} | dict.fromkeys(held_out, 0.9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report(tmp_path, 200)
    out = capsys.readouterr().out
    for shown in ("chain_sum", "products", "40.0%", "90.0%", "45.0%", "report.png"):
        assert shown in out
    assert (tmp_path / "report.png").stat().st_size > 5000
