"""What recipes may say, and the line that each mistake is answered with."""

import pytest

from curation.recipe import fit, parse_recipe, read_recipe
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
    ({"max_removal": 0, "stages": ["curated:shorter"]}, "max_removal is 0; it takes a mapping"),
    ({"max_removal": {"default": 1.5}, "stages": ["curated:shorter"]}, "default is 1.5; it takes a share from 0 to 1"),
    ({"max_removal": {"default": float("nan")}, "stages": ["curated:shorter"]}, "it takes a share from 0 to 1"),
    ({"stages": [{"curated:shorter": 0}]}, "keys are 0, not a mapping"),
    ({"stages": [{"curated:shorter": False}]}, "keys are false, not a mapping"),
    ({"stages": [3]}, "stage 1 is 3; each is one name"), ({"stages": [None]}, "stage 1 is null"),
    ({"stages": ["curated:positional"]}, "needs than; give it as a key"),
    ({"stages": ["curated:unresolved"]}, "an annotation of its function cannot be read"),
    ({"stages": ["curated:shorter", "unreadable"]}, "stage 2 is unreadable, which must be the first"),
    ({"stages": ["unreadable", "unreadable"]}, "stage 2 is unreadable, which must be the first"),
])
def test_mistakes_are_one_line(recipe, words):
    with pytest.raises(InputError) as raised:
        parse_recipe(recipe)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("value", "kind", "fitted"), [
    (3, float, 3.0), (["a"], tuple[str, ...], ("a",)), (0.5, float | tuple[float, ...], 0.5),
    (0, float, 0.0), ([1, 0.5], float | tuple[float, ...], (1.0, 0.5)), (None, str | None, None),
    ({"a": 1}, dict[str, float], {"a": 1.0})])
def test_values_fit_their_kinds(value, kind, fitted):
    assert fit("it", value, kind) == fitted
    assert type(fit("it", value, kind)) is type(fitted)


@pytest.mark.parametrize(("value", "kind"), [
    (0.5, int), (True, float), (float("nan"), float), (float("inf"), float | None), (10**400, float),
    (["a", 1], tuple[str, ...]), ("a", tuple[str, ...]), ({1: 1.0}, dict[str, float])])
def test_others_do_not(value, kind):
    with pytest.raises(InputError, match="^it is .*; it takes "):
        fit("it", value, kind)


@pytest.mark.parametrize("text", [
    "stages: [shuffle]\nstages: [mix]", "stages:\n- length: {max_tokens: 5, min_tokens: 1, max_tokens: 6}",
    "max_removal: {default: 1, default: 0.1}\nstages: [shuffle]", "stages: [{shuffle: {}, shuffle: {}}]",
    "{[1]: 2, [1]: 3}", "stages: [", "\x00", "- 1"])
def test_a_file_that_says_a_thing_twice_or_is_no_recipe_is_one_line(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match="^--stages .*recipe.yaml: ") as raised:
        read_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("stage", "words"), [
    ({"contamination": {"against": ["x.jsonl"], "min_share": 1.5}}, "min_share 1.5"),
    ({"contamination": {"against": ["x.jsonl"], "max_items": 0}}, "max_items 0"),
    ({"contamination": {"against": []}}, "against is a list"),
    ({"phrases": {"words_from_start": 0}}, "takes 1 or more"),
    ({"near_duplicates": {"threshold": 0}}, "threshold 0"), ({"near_duplicates": {"threshold": 1.5}}, "threshold 1.5"),
    ({"repetition": {"max_repeated": 0}}, "max_repeated 0"),
    ({"length": {"min_tokens": 9, "max_tokens": 1}}, "leave no"),
    ({"semantic_duplicates": {"cluster_size": 0, "model": "m"}}, "cluster_size is 0"),
    ({"k_centre": {"keep": 3, "max_tokens": 0, "encoder": "curated:letters"}}, "max_tokens is 0"),
    ({"quality": {"rewards": "curated:fussy", "min_score": 2, "max_score": 1}}, "from 2 to 1 leaves no row"),
    ({"quality": {"rewards": "curated:fussy", "batch_size": 0}}, "batch_size takes 1"),
    ({"quality": {"rewards": "curated:fussy", "timeout": 0}}, "timeout is 0"),
    ({"difficulty": {"low": 0.9, "high": 0.1}}, "in order"), ({"mix": {"caps": {"a": 0}}}, "caps and max_rows take 1"),
    ({"quantiles": {"by": "x", "drop_lowest": 1}}, "leave some rows"), ({"best_of": {"keep": 0}}, "keep is 0")])
def test_numbers_that_make_no_sense_are_a_line_that_names_the_stage(tmp_path, stage, words):
    step = parse_recipe({"stages": [stage]}).steps[0]
    with pytest.raises(InputError, match=f"^stage {step.name}: .*{words}"):
        step.make(tmp_path)
