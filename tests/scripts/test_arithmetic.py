"""make grpo's recipe is one that scripts.grpo takes."""

from cli.parsing import parse_recipe
from data.sources import DataSource, open_source
from scripts import grpo
from scripts.arithmetic import RECIPE


def test_the_recipe_is_read_and_its_eval_problems_are_others():
    recipe = parse_recipe(grpo.Config, RECIPE)
    grpo.check(recipe)
    sources = {name.partition(":gym:")[2] for name in recipe.evaluate.names}
    assert [len(open_source(DataSource(f"gym:{source}"))) for source in sources] == [60, 60]
    assert {each.source.removeprefix("gym:") for each in recipe.data}.isdisjoint(sources)
