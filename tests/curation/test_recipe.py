"""What recipes may say, and the line that each mistake is answered with."""

import pytest

from curation.recipe import fit, parse_recipe
from errors import InputError


def test_stages_keys_and_bounds():
    recipe = parse_recipe({"max_removal": {"default": 0.2, "curated:distinct": 1}, "stages": [
        {"curated:shorter": {"than": 3}}, "curated:distinct", {"curated:shorter": None}]})
    assert [(step.name, step.keys, step.max_removal, step.label) for step in recipe.steps] == [
        ("curated:shorter", {"than": 3}, 0.2, "curated.shorter"), ("curated:distinct", {}, 1.0, "curated.distinct"),
        ("curated:shorter", {}, 0.2, "curated.shorter_2")]
    assert parse_recipe({"stages": ["curated:distinct"]}).steps[0].max_removal == 0.5


@pytest.mark.parametrize(("recipe", "words"), [
    ({"stages": [{"exact_duplicate": {}}]}, "no stage is called 'exact_duplicate'; exact_duplicates is meant?"),
    ({"stages": [{"curated:shorter": {"then": 3}}]}, "no key of stage curated:shorter is called 'then'; than is"),
    ({"stages": [{"curated:shorter": {"than": "3"}}]}, 'than is "3"; it takes a whole number'),
    ({"stages": [{"curated:shorter": {"than": True}}]}, "than is true; it takes a whole number"),
    ({"stages": [{"curated:shorter": [3]}]}, "keys are [3], not a mapping"),
    ({"stages": [{"curated:sour": {"folder": "x"}}]}, "is called 'folder'"),
    ({"stages": [{"sample": {"num_samples": 2}}]}, "stage sample needs model"),
    ({"stages": [{"a": {}, "b": {}}]}, "stage 1 is"),
    ({"stages": []}, "a recipe is a mapping"),
    (["curated:shorter"], "a recipe is a mapping"),
    ({"stage": [], "stages": ["curated:shorter"]}, "no key is called 'stage'; stages is meant?"),
    ({"stages": ["curated:nothing"]}, "names no function"),
    ({"max_removal": {"curated:shorte": 1}, "stages": ["curated:shorter"]}, "no stage in max_removal is called"),
    ({"max_removal": {"default": 50}, "stages": ["curated:shorter"]}, "default is 50; it takes a share from 0 to 1"),
    ({"max_removal": 0.5, "stages": ["curated:shorter"]}, "max_removal is 0.5; it takes a mapping"),
])
def test_mistakes_are_one_line(recipe, words):
    with pytest.raises(InputError) as raised:
        parse_recipe(recipe)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("value", "kind", "fitted"), [
    (3, float, 3.0), (["a"], tuple[str, ...], ("a",)), (0.5, float | tuple[float, ...], 0.5),
    ([1, 0.5], float | tuple[float, ...], (1.0, 0.5)), (None, str | None, None),
    ({"a": 1}, dict[str, float], {"a": 1.0})])
def test_values_fit_their_kinds(value, kind, fitted):
    assert fit("it", value, kind) == fitted
    assert type(fit("it", value, kind)) is type(fitted)


@pytest.mark.parametrize(("value", "kind"), [
    (0.5, int), (True, float), (["a", 1], tuple[str, ...]), ("a", tuple[str, ...]), ({1: 1.0}, dict[str, float])])
def test_others_do_not(value, kind):
    with pytest.raises(InputError, match="^it is .*; it takes "):
        fit("it", value, kind)
