"""Choices among the completions of a prompt, against what is counted by hand."""

import pytest

from curation.choose import best_of, difficulty, labels, pairs, rejection_sampling
from curation.groups import summarise
from curation.stages import Drop, Row
from errors import InputError


def group(index, rewards, texts=None, **rewards_by_name):
    """Completions of a prompt, in texts or of growing length."""
    return [Row("a.jsonl", index, {"prompt": f"p{index}", "completion": texts[sample] if texts else "a" * (sample + 1),
                                   "answer": index},
                {"reward": reward, "rewards": {name: values[sample] for name, values in rewards_by_name.items()},
                 "replaced": {"prompt": f"P{index}", "completion": "reference"}, "stage": "sample"}, sample)
            for sample, reward in enumerate(rewards)]


def run(stage, *groups):
    """(place, sample) of those kept, reasons of the others; every row comes back once, in order."""
    rows = [row for each in groups for row in each]
    places = [(row.index, row.sample) for row in rows]
    given = list(stage(iter(rows)))
    assert names(each.row if isinstance(each, Drop) else each for each in given) == places
    return [each for each in given if isinstance(each, Row)], [each for each in given if isinstance(each, Drop)]


def names(rows):
    return [(row.index, row.sample) for row in rows]


def test_best_of_takes_the_highest_the_first_of_equals_and_none_without_a_reward():
    kept, dropped = run(best_of(), group(0, [0.0, 1.0, 1.0]), group(1, [None, -1.0, None]), group(2, [None]))
    assert names(kept) == [(0, 1), (1, 1)]
    assert [each.reason.partition(":")[0] for each in dropped] == [
        "reward 0 beside 1", "reward 1 beside 1", "no reward", "no reward", "no reward"]
    assert [each.kept_instead for each in dropped] == [
        ("a.jsonl", 0, 1), ("a.jsonl", 0, 1), ("a.jsonl", 1, 1), ("a.jsonl", 1, 1), None]
    assert names(run(best_of(keep=2), group(0, [0.0, 1.0, 2.0]), group(1, [5.0]))[0]) == [(0, 1), (0, 2), (1, 0)]


def test_weights_add_rewards_up_anew():
    some = group(0, [1.0, 0.0, 0.5], exact=[1.0, 0.0, 0.0], short=[-1.0, 0.0, None])
    assert names(run(best_of(weights={"exact": 1.0, "short": 2.0}), some)[0]) == [(0, 1)]
    assert names(run(best_of(weights={"short": 1.0}), some)[0]) == [(0, 1)]
    with pytest.raises(InputError, match="a.jsonl row 0 has no reward 'long', only exact, short"):
        run(best_of(weights={"long": 1.0}), some)


@pytest.mark.parametrize(("order", "taken"), [("best", [2, 4]), ("first", [1, 2]), ("shortest", [3, 4]),
                                              ("different", [1, 2, 4])])
def test_rejection_sampling(order, taken):
    texts = ["wrong", "one two three", "four five six seven", "one two", "two one"]
    some = group(0, [0.0, 1.0, 3.0, 1.0, 2.0], texts)
    kept, dropped = run(rejection_sampling(threshold=1.0, max_per_prompt=len(taken), order=order), some)
    assert sorted(row.sample for row in kept) == taken
    assert [each.reason.startswith("reward 0 below 1") for each in dropped] == [True] + [False] * (
        4 - len(taken))
    assert len(run(rejection_sampling(threshold=1.0), some)[0]) == 4


def test_pairs_are_best_against_worst_beyond_the_margin():
    stage = pairs(margin=0.5)
    kept, dropped = run(stage, group(0, [0.0, 1.0, 0.5, 0.0]), group(1, [0.5, 0.0]), group(2, [1.0]),
                        group(3, [2.0, 0.0]))
    assert [(row.place[1], row.record) for row in kept] == [
        (index, {"prompt": f"p{index}", "answer": index, "chosen": chosen, "rejected": rejected, "rejected_reward": 0.0,
                 "chosen_reward": reward}) for index, chosen, rejected, reward in ((0, "aa", "a", 1.0),
                                                                                   (3, "a", "aa", 2.0))]
    assert [(each.row.index, each.reason.split(":")[0]) for each in dropped[:3]] == [
        (0, "is the rejected one of a pair"), (0, "neither best nor worst"), (0, "neither best nor worst")]
    assert {each.reason for each in dropped if each.row.index in (1, 2)} == {
        "its prompt's best and worst rewards are 0.5 apart, not more than 0.5",
        "its prompt's best and worst rewards are 0 apart, not more than 0.5"}
    assert {name: stage.summary()[name] for name in ("chosen_longer", "chosen_shorter")} == {
        "chosen_longer": 1, "chosen_shorter": 1}


def test_labels():
    kept, dropped = run(labels(good=1.0, bad=0.0), group(0, [1.0, 0.5, 0.0, None]))
    assert [(row.sample, row.record["label"]) for row in kept] == [(0, True), (2, False)]
    assert [each.reason.split(":")[0] for each in dropped] == ["reward 0.5, between bad and good", "no reward"]
    assert [row.record["label"] for row in run(labels(), group(0, [1.0, 0.5]))[0]] == [True, False]


def test_prompts_by_difficulty_are_rows_as_they_were():
    kept, dropped = run(difficulty(low=0.25, high=0.5), group(0, [1.0, 0.0, 0.0, 0.0]), group(1, [1.0, 1.0, 0.0]),
                        group(2, [0.0, 0.0]), group(3, [None, 1.0, 0.0]))
    assert [(row.index, row.record) for row in kept] == [
        (0, {"prompt": "P0", "completion": "reference", "answer": 0, "solved": 0.25}),
        (3, {"prompt": "P3", "completion": "reference", "answer": 3, "solved": 0.5})]
    assert {each.reason for each in dropped} == {
        "its prompt is kept, without completions", "67% of its prompt's completions are right, not 25% to 50%",
        "0% of its prompt's completions are right, not 25% to 50%", "no reward: the reward left it out"}


def test_pass_at_k_is_what_drawing_all_subsets_gives():
    import itertools

    groups = {(4, 1): 2, (4, 0): 1, (3, 3): 1, (0, 0): 5}
    found = summarise(groups)
    for k in (1, 2, 4):
        chances = []
        for (n, right), count in groups.items():
            draws = list(itertools.combinations(range(n), k))
            chances += [sum(any(each < right for each in draw) for draw in draws) / len(draws)] * count if draws else []
        assert found[f"pass@{k}"] == pytest.approx(sum(chances) / len(chances), abs=1e-12)
    assert found.keys() - {"pass@1", "pass@2", "pass@4"} == {"prompts", "prompts_without_reward", "share_without_right"}
    assert (found["prompts"], found["prompts_without_reward"], found["share_without_right"]) == (9, 5, 0.25)


@pytest.mark.parametrize("maker", [best_of, rejection_sampling, pairs, labels, difficulty])
def test_rows_that_were_never_graded_are_a_line(maker):
    with pytest.raises(InputError, match="a.jsonl row 0 has no reward; put a stage sample"):
        run(maker(), [Row("a.jsonl", 0, {"prompt": "p", "completion": "c"})])


@pytest.mark.parametrize(("make", "words"), [
    (lambda: best_of(keep=0), "keep is 0"), (lambda: rejection_sampling(max_per_prompt=0), "max_per_prompt is 0"),
    (lambda: pairs(margin=-1.0), "margin is -1"), (lambda: labels(good=0.0, bad=0.0), "bad is 0 and good 0"),
    (lambda: difficulty(low=0.8, high=0.2), "low is 0.8 and high 0.2")])
def test_numbers_that_make_no_sense(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("stage", [pairs(), *(rejection_sampling(order=order) for order in ("shortest", "different"))])
def test_rows_that_have_no_completion_any_more_are_a_line(stage):
    rows = [Row("a", 0, {"prompt": "p", "chosen": "x", "rejected": "y"}, {"reward": reward}, sample)
            for sample, reward in enumerate((1.0, 2.0))]
    with pytest.raises(InputError, match="a row 0 has no completion, only chosen, prompt, rejected"):
        list(stage(rows))
