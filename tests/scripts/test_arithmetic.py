"""What make grpo shows, from a run's metrics; and that its recipe is one that scripts.grpo takes."""

import json

from cli.parsing import parse_recipe
from data.sources import DataSource, open_source
from scripts import grpo
from scripts.arithmetic import RECIPE, report


def test_the_recipe_is_read_and_its_eval_problems_are_others():
    recipe = parse_recipe(grpo.Config, RECIPE)
    grpo.check(recipe)
    sources = {name.partition(":gym:")[2] for name in recipe.evaluate.names}
    assert [len(open_source(DataSource(f"gym:{source}"))) for source in sources] == [60, 60]
    assert {each.source.removeprefix("gym:") for each in recipe.data}.isdisjoint(sources)


def test_the_report_has_a_picture(tmp_path, capsys):
    lines = [{"step": 0, "eval/sums/correct": 0.45},
             *({"step": step, "loss": 0.0, "reward": step / 10, "rewards/gym_exact:products/mean": step / 10,
                "completions/mean_length": 9.0} for step in range(1, 6))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report(tmp_path)
    assert "report.png" in capsys.readouterr().out
    assert (tmp_path / "report.png").stat().st_size > 5000
