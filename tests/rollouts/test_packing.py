"""Micro-batches: every row once, within the budget, of few shapes; columns go and come back."""

import jax
import numpy as np
import pytest
from tiny import one_device

from data.prompts import Prompt
from rollouts import packing
from rollouts.episodes import Episode, Group, to_batch
from rollouts.packing import (
    completion_sizes,
    gather,
    num_parts,
    pack,
    pack_minibatches,
    plan_shapes,
    prompt_sizes,
    put,
)
from sharding.mesh import MeshConfig, make_layout


def groups_of(lengths, seed=0):
    """A group for each (prompt's length, completions' lengths); their tokens are random."""
    random, groups = np.random.default_rng(seed), []
    for number, (prompt_length, completion_lengths) in enumerate(lengths):
        prompt = Prompt(random.integers(1, 64, prompt_length).tolist(), str(number), {"level": number})
        episodes = [Episode(prompt.tokens + random.integers(1, 64, length).tolist(), prompt_length, [True] * length,
                            (-random.exponential(size=length)).tolist(), finish_reason="stop", reward=float(length))
                    for length in completion_lengths]
        groups.append(Group(number, prompt, episodes))
    return groups


def ragged(count, group_size, longest_prompt, longest, seed=0):
    random = np.random.default_rng(seed)
    lengths = [(random.integers(1, longest_prompt + 1).item(), random.integers(1, longest + 1, group_size).tolist())
               for _ in range(count)]
    return groups_of(lengths, seed)


def test_a_batch_has_an_episode_a_row_from_column_0():
    episode = Episode([1, 2, 5, 6, 9, 7], 2, [True, True, False, True], [-1.0, -2.0, 0.0, -3.0], finish_reason="length")
    other = Episode([1, 2, 0], 2, [True], [-0.1], finish_reason="stop", reward=1.0)
    batch = to_batch([Group(0, Prompt([1, 2], "ab", {"level": 3}), [episode, other])], ["level"])
    assert batch["tokens"].tolist() == [[1, 2, 5, 6, 9, 7], [1, 2, 0, 0, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["loss_mask"].tolist() == [[0, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0]], "what the policy drew, its end too"
    assert batch["sampler_logps"][0].tolist() == [0, 0, -1.0, -2.0, 0, -3.0]
    assert batch["truncated"].tolist() == [1, 0]
    assert batch["level"].tolist() == [3, 3]
    np.testing.assert_array_equal(batch["rewards"], [np.nan, 1.0])


@pytest.mark.parametrize("ways", [1, 4])
@pytest.mark.parametrize("budget", [64, 300, 700, 5000, 100_000])
@pytest.mark.parametrize(("group_size", "longest_prompt", "longest"), [(4, 20, 30), (5, 300, 90), (2, 8, 700)])
def test_every_row_once_within_the_budget_and_at_most_six_shapes(budget, group_size, longest_prompt, longest, ways):
    groups = ragged(6, group_size, longest_prompt, longest)
    batch = to_batch(groups)
    shapes = plan_shapes([longest_prompt, *(len(group.prompt.tokens) for group in groups)], longest, group_size, 6,
                         budget, ways)
    assert len(shapes) <= 6
    parts = pack(batch, group_size, shapes)
    rows = np.concatenate([part.rows for part in parts])
    assert sorted(rows[rows >= 0].tolist()) == list(range(6 * group_size))
    assert len(parts) == 1 or num_parts(shapes, group_size, 6) > 1
    for part in parts:
        shape = part.shape
        assert shape in shapes
        assert len(part.rows) == shape.slots * shape.rows
        assert shape.slots % ways == 0
        positions = shape.slots // ways * (shape.prompt_length + shape.rows * shape.length)
        assert positions <= max(budget, shape.prompt_length + shape.length)
        for slot in part.rows.reshape(shape.slots, shape.rows):
            assert len({row // group_size for row in slot if row >= 0}) <= 1 or shape.rows == 1


def test_what_fits_is_one_micro_batch_without_room_to_spare():
    batch = to_batch(ragged(6, 4, 20, 30))
    shapes = plan_shapes([20], 30, 4, 6, 10_000)
    [part] = pack(batch, 4, shapes)
    assert (part.shape.rows, part.shape.slots) == (4, 6)
    assert num_parts(shapes, 4, 6) == 1
    assert (part.rows >= 0).all()


def test_columns_come_back_as_they_went():
    groups = ragged(4, 3, 60, 200)
    batch = to_batch(groups, ["level"])
    for budget in (100, 700, 5000):
        parts = pack_minibatches(batch, 2, 3, plan_shapes([8, 60], 200, 3, 2, budget, 2))
        assert len(parts) == 2
        layout = make_layout(MeshConfig(2), jax.devices()[:2])
        micro = [[put(batch, part, layout) for part in each] for each in parts]
        for name in ("sampler_logps", "loss_mask"):
            back = gather([[each.columns[name] for each in one] for one in micro], parts, batch)
            np.testing.assert_array_equal(back, batch[name])
        for one, each in zip(micro, parts):
            for laid, part in zip(one, each):
                there = part.rows >= 0
                levels = np.asarray(laid.columns["level"])
                np.testing.assert_array_equal(levels[there], batch["level"][part.rows[there]])
                assert not np.asarray(laid.columns["segment_ids"])[~there].any()
                np.testing.assert_array_equal(np.sum(laid.columns["segment_ids"], axis=1)[there],
                                              np.sum(batch["segment_ids"], axis=1)[part.rows[there]])


def test_prompts_that_are_shared_end_at_one_column():
    batch = to_batch(groups_of([(3, [2, 4]), (5, [1, 1])]))
    [part] = pack(batch, 2, plan_shapes([5], 8, 2, 2, 1000))
    laid = put(batch, part, one_device())
    assert laid.row_layout == (8, 2)
    tokens = np.asarray(laid.columns["tokens"])
    for row, number in zip(tokens, part.rows):
        length = batch["prompt_length"][number]
        assert row[8 - length : 8].tolist() == batch["tokens"][number, :length].tolist()
        assert not row[: 8 - length].any()


def test_members_whose_prompts_differ_share_none():
    groups = groups_of([(4, [2, 2, 2])])
    groups[0].episodes[1].tokens[0] += 1
    batch = to_batch(groups)
    parts = pack(batch, 3, plan_shapes([4], 8, 3, 1, 1000))
    slots = [slot for part in parts for slot in part.rows.reshape(part.shape.slots, part.shape.rows)]
    assert sorted(tuple(row for row in slot if row >= 0) for slot in slots) == [(0, 2), (1,)]


def test_shapes_are_as_many_as_are_worth_it():
    assert prompt_sizes([10, 12, 14]) == [16]
    assert prompt_sizes([10] * 9 + [500]) == [16, 504]
    assert completion_sizes(32) == [32]
    assert completion_sizes(200) == [104, 200]
    assert completion_sizes(1024) == [256, 512, 1024]


def test_shapes_that_no_part_has_are_left_to_be_compiled():
    batch = to_batch(ragged(4, 3, 60, 200))
    shapes = plan_shapes([8, 160], 200, 3, 4, 700)
    parts = pack_minibatches(batch, 1, 3, shapes)
    left = packing.unused(shapes, parts)
    assert {part.shape for part in left} == {*shapes} - {part.shape for part in parts[0]}
    assert left
    for part in left:
        assert part.rows.tolist() == [-1] * (part.shape.slots * part.shape.rows)
