"""Advantages by name, and by a function of one's own; the KL in the reward."""

import math

import numpy as np
import pytest

from data.prompts import Prompt
from errors import InputError
from rollouts.credit import make_credit, with_kl_in_reward
from rollouts.episodes import Episode, Group, to_batch


def batch_of(*rewards):
    prompt = Prompt([1, 2], "ab", {})
    groups = [Group(number, prompt, [Episode([1, 2, 5, 6], 2, [True] * 2, [-1.0] * 2, finish_reason="stop", reward=each)
                                     for each in of_group]) for number, of_group in enumerate(rewards)]
    return groups, to_batch(groups)


def test_the_advantages_of_a_name():
    columns = make_credit("mean")(*batch_of((1.0, 3.0), (None, 2.0)))
    assert columns["advantages"].tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert columns["advantages"].dtype == np.float32
    equal = make_credit("group")(*batch_of((0.9,) * 3))["advantages"]  # whose mean is another number in float32
    assert equal.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("name", "line"), [
    ("median", "no advantages are called median"), ("math:nothing", "names no function"),
    ("mine", "no advantages are called mine")])
def test_unknown_names_are_told(name, line):
    with pytest.raises(InputError, match=line):
        make_credit(name)


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_credit.py").write_text(
        "import numpy as np\n\n"
        "def by_token(groups, batch):\n"
        "    rewards = np.nan_to_num(batch['rewards'])\n"
        "    by_row = rewards + batch['ref_logps'][:, 0]\n"
        "    return {'advantages': rewards[:, None] * batch['loss_mask'], 'extra': by_row}\n\n"
        "by_token.needs = ('ref_logps',)\n\n"
        "def nothing(groups, batch):\n    return batch['rewards']\n\n"
        "def infinite(groups, batch):\n    return {'advantages': np.full(len(batch['rewards']), np.inf)}\n\n"
        "def short(groups, batch):\n    return {'advantages': batch['rewards'][1:]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    credit = make_credit("own_credit:by_token")
    assert credit.needs == ("ref_logps",)
    groups, batch = batch_of((1.0, None))
    columns = credit(groups, batch | {"ref_logps": np.ones((2, 4))})
    assert columns["advantages"].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert columns["extra"].tolist() == [2.0, 1.0]
    bad = {"nothing": "gave no column advantages", "infinite": "not finite", "short": r"shape \(1,\)"}
    for name, line in bad.items():
        with pytest.raises(InputError, match=line):
            make_credit(f"own_credit:{name}")(groups, batch)


@pytest.mark.parametrize(("kl", "estimate"), [("k1", lambda d: d), ("k3", lambda d: math.expm1(-d) + d)])
def test_the_kl_in_the_reward_is_that_of_each_episode(kl, estimate):
    _, batch = batch_of((1.0, None))
    batch["old_logps"] = np.where(batch["loss_mask"] > 0, -1.0, 7.0)
    batch["ref_logps"] = np.where(batch["loss_mask"] > 0, -1.5, 9.0)
    rewards = with_kl_in_reward(batch, 0.1, kl)
    assert rewards[0] == pytest.approx(1.0 - 0.1 * 2 * estimate(0.5))
    assert math.isnan(rewards[1])


def test_what_a_function_of_ones_own_may_not_do_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "odd_credit.py").write_text(
        "def text(groups, batch):\n    return {'advantages': 'abc'}\n\n"
        "def ragged(groups, batch):\n    return {'advantages': [[1], [1, 2]]}\n\n"
        "def taken(groups, batch):\n    return {'advantages': [0, 0], 'tokens': batch['tokens']}\n\n"
        "def number(groups, batch):\n    return {'advantages': [0, 0], 3: [0, 0]}\n\n"
        "def unknown(groups, batch):\n    return {'advantages': batch['values']}\n\n"
        "unknown.needs = ('values',)\n\n"
        "def one(groups, batch):\n    return {'advantages': batch['old_logps']}\n\n"
        "one.needs = 'old_logps'\n\n"
        "def in_place(groups, batch):\n"
        "    batch['rewards'] -= 1\n"
        "    batch['prompt_length'][:] = 0\n"
        "    return {'advantages': batch.pop('rewards')}\n\n"
        "nothing = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    groups, batch = batch_of((1.0, 2.0))
    for name, line in {"text": "no array of numbers", "ragged": "no array of numbers", "taken": "column tokens is the",
                       "number": "no text for a name"}.items():
        with pytest.raises(InputError, match=line):
            make_credit(f"odd_credit:{name}")(groups, batch)
    for name, line in {"unknown": "needs values, which no batch has", "nothing": "names no function"}.items():
        with pytest.raises(InputError, match=line):
            make_credit(f"odd_credit:{name}")
    assert make_credit("odd_credit:one").needs == ("old_logps",)
    assert make_credit("odd_credit:in_place")(groups, batch)["advantages"].tolist() == [0, 1]
    assert batch["rewards"].tolist() == [1, 2]
    assert batch["prompt_length"].tolist() == [2, 2]
