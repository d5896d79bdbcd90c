"""How pairs become batches: every pair once, contexts that several have once, few shapes."""

import numpy as np
import pytest
from tiny import CONFIG, one_device, variables_on

from batch import MOST_LENGTHS
from evals import likelihood
from evals.likelihood import batches, lay, make_scorer
from models.transformer import Transformer
from sharding.mesh import MeshConfig, make_layout


@pytest.fixture
def pairs():
    """40 questions with 1 to 10 choices, and contexts of 1 to 600 tokens."""
    random = np.random.default_rng(0)
    made = []
    for number in range(40):
        context = random.integers(1, 50, 1 + number**2 % 600).tolist()
        made += [(context, random.integers(1, 50, 1 + choice).tolist()) for choice in range(1 + number % 10)]
    return made


@pytest.mark.parametrize("shards", [1, 4])
def test_every_pair_is_scored_once_and_few_shapes_are_compiled(pairs, shards):
    found = list(batches(pairs, shards))
    scored = [number for contexts, _ in found for numbers in contexts for number in numbers]
    assert sorted(scored) == list(range(len(pairs)))
    assert len({shape for _, shape in found}) <= 12
    assert max(len({shape.width for _, shape in found}), len({shape.length for _, shape in found})) <= MOST_LENGTHS
    for contexts, shape in found:
        assert len(contexts) <= shape.contexts
        assert shape.contexts % shards == 0
        assert shape.contexts == shards or (
            shape.contexts * (shape.width + shape.group * shape.length) <= shards * likelihood.AT_A_TIME)
        assert shape.group in (1, 2, 4, 8)
        for numbers in contexts:
            assert shape.group // 2 < len(numbers) <= shape.group <= likelihood.TOGETHER
            assert len({tuple(pairs[number][0]) for number in numbers}) == 1


def test_contexts_that_a_batch_has_no_room_for_are_of_the_next(monkeypatch):
    """The longest context says how many there are, and a longer continuation behind it that they are fewer."""
    monkeypatch.setattr(likelihood, "AT_A_TIME", 600)
    monkeypatch.setattr(likelihood, "_sizes", lambda *_: [[24, 104], [8, 72]])
    lengths = [(100, 1), (99, 1), *[(20, 70)] * 4]
    found = list(batches([([number] * context, [7] * length) for number, (context, length) in enumerate(lengths)], 1))
    assert sorted(number for contexts, _ in found for numbers in contexts for number in numbers) == list(range(6))
    assert all(len(contexts) <= shape.contexts for contexts, shape in found)
    assert found[0][1].contexts == 3


def test_contexts_end_where_continuations_begin(pairs):
    for contexts, shape in batches(pairs, 1):
        batch = lay(pairs, contexts, shape)
        for place, numbers in enumerate(contexts):
            for row, number in enumerate(numbers, place * shape.group):
                context, continuation = pairs[number]
                there = batch["segment_ids"][row] == 1
                assert batch["tokens"][row][there].tolist() == context + continuation
                assert batch["positions"][row][there].tolist() == list(range(len(context + continuation)))
                assert batch["tokens"][row][shape.width :][: len(continuation)].tolist() == continuation
        assert batch["segment_ids"].sum() == sum(
            len(pairs[number][0]) + len(pairs[number][1]) for numbers in contexts for number in numbers)


def test_what_is_wanted_alone_is_scored_in_the_batches_of_all(monkeypatch):
    """An evaluation that goes on gets the bits that it would have had."""
    laid = []

    def spy(pairs, contexts, shape):
        laid.append((contexts, shape))
        return lay(pairs, contexts, shape)

    monkeypatch.setattr(likelihood, "AT_A_TIME", 64)  # two contexts
    monkeypatch.setattr(likelihood, "lay", spy)
    few = [([number] * length, [7]) for number, length in ((1, 20), (2, 20), (3, 20), (4, 3))]
    score = make_scorer(Transformer(CONFIG), one_device())
    whole = dict(score(variables_on(one_device()), few))
    assert len(laid) == 2
    assert dict(score(variables_on(one_device()), few, {3})) == {3: whole[3]}
    assert laid[2:] == laid[1:2]


def test_a_mesh_changes_nothing():
    model = Transformer(CONFIG)
    few = [([place + 1] * 7, [place + choice] * choice) for place in range(10) for choice in (1, 2, 3)]  # of one shape

    def scored(layout):
        return dict(make_scorer(model.clone(layout=layout), layout)(variables_on(layout), few))

    alone, spread = scored(one_device()), scored(make_layout(MeshConfig(data=2, fsdp=2, tensor=2)))
    assert alone.keys() == spread.keys() == set(range(30))
    for number, (logp, greedy) in alone.items():
        assert spread[number] == (pytest.approx(logp, abs=1e-4), greedy)
