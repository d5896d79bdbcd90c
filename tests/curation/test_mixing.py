"""Mixtures and orders: the numbers asked for, drawn by the seed."""

from collections import Counter

import pytest

from curation.mixing import mix, mixed_sizes, shuffle
from curation.stages import Drop, Row
from errors import InputError


def rows(**sizes):
    return [Row(source, index, {"text": f"{source}{index}"}, sample=sample)
            for source, size in sizes.items() for index in range(size // 2) for sample in range(2)]


@pytest.mark.parametrize(("keys", "sizes"), [
    ({"caps": {"a": 10}}, {"a": 10, "b": 40}), ({"max_rows": 28}, {"a": 20, "b": 8}),
    ({"proportions": {"a": 1, "b": 1}}, {"a": 40, "b": 40}),
    ({"proportions": {"a": 0.8, "b": 0.2}}, {"a": 100, "b": 25}),
    ({"proportions": {"a": 1, "b": 3}, "caps": {"b": 30}, "max_rows": 20}, {"a": 5, "b": 15}),
    ({"proportions": {"a": 1, "b": 0}}, {"a": 100, "b": 0}), ({"proportions": {"a": 2, "b": 1}, "max_rows": 10},
                                                              {"a": 7, "b": 3})])
def test_sizes(keys, sizes):
    given = list(mix(**keys)(rows(a=100, b=40)))
    assert Counter(row.source for row in given if isinstance(row, Row)) == Counter(sizes)
    assert len(given) == 140
    assert {each.reason for each in given if isinstance(each, Drop)} == {
        f"{size} rows of its source are enough" for source, size in sizes.items() if size < {"a": 100, "b": 40}[source]}


def test_sizes_add_up_whatever_the_shares():
    there = dict.fromkeys("abc", 100)
    for total in range(3, 60):
        assert sum(mixed_sizes(there, {"a": 1, "b": 1, "c": 1.01}, {}, total).values()) == total


def kept(stage, some):
    return {(row.source, row.index, row.sample) for row in stage(iter(some)) if isinstance(row, Row)}


def test_the_seed_draws_and_more_rows_keep_those_of_fewer():
    some = rows(a=100, b=40)
    first = kept(mix(caps={"a": 30}), some)
    assert first == kept(mix(caps={"a": 30}), some[::-1])
    assert first != kept(mix(caps={"a": 30}, seed=1), some)
    assert first < kept(mix(caps={"a": 31}), some)


def test_shuffle_keeps_all_rows_and_a_prompts_completions_together():
    some = rows(a=100, b=40)
    orders = [[(row.source, row.index, row.sample) for row in shuffle(seed=seed)(some)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted((row.source, row.index, row.sample) for row in some)
    for first, second in zip(orders[0][::2], orders[0][1::2]):
        assert (first[:2], first[2], second[2]) == (second[:2], 0, 1)
    assert sum(source == "b" for source, _, _ in orders[0][:70]) in range(10, 31)


@pytest.mark.parametrize(("keys", "words"), [
    ({"caps": {"c": 3}}, "no row is of the source 'c'; there are a, b"),
    ({"proportions": {"a": 1.0}}, "source b has no"),
    ({"proportions": {"a": -1.0, "b": 2.0}}, "take 0 or more"), ({"proportions": {"a": 0.0}}, "one that is not 0"),
    ({"max_rows": 0}, "take 1 or more")])
def test_mistakes(keys, words):
    with pytest.raises(InputError, match=words):
        list(mix(**keys)(rows(a=4, b=4)))
