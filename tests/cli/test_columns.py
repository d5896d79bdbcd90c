"""What an objective declares is looked for before weights are read: in the data, the script, the scorer."""

import functools

import pytest

from cli.columns import Needed, needed_columns, tell_unread
from data.specs import bind
from errors import InputError
from objectives.base import declared
from objectives.dpo import configure, dpo
from objectives.grpo import configure as configure_grpo
from objectives.kto import kto
from objectives.orpo import orpo
from objectives.reward_model import reward_model
from objectives.sft import sft


def mine(scores, batch, scale=1.0):
    return None


mine.needs = ("weight", "values", "ref_logps", "tokens")


class Rows(list):
    def place(self, index):
        return f"rows:{index}"


def test_what_objectives_declare():
    assert [declared(each) for each in (sft, orpo, reward_model, kto, dpo)] == [
        (), (), (), ("ref_logps", "label", "kto_z"), ("ref_logps",)]
    assert declared(reward_model, "optional") == ("margin",)
    assert declared(configure(losses=(("sft_token", 1.0), ("bco_pair", 1.0)))) == ("ref_logps", "chosen_length")
    assert declared(configure_grpo()) == ("advantages",)
    assert declared(configure_grpo(beta=0.1, mask_truncated=True, importance_sampling_correction="token_mask")) == (
        "advantages", "ref_logps", "truncated", "sampler_logps")
    for bound in (bind(mine, "--objective", scale=2.0), functools.partial(mine, scale=2.0),
                  functools.partial(functools.partial(mine), scale=2.0)):
        assert declared(bound) == mine.needs


def test_what_is_left_for_the_data():
    def scorer():
        return None

    scorer.gives = ("values",)
    assert needed_columns(mine) == Needed(("weight", "values", "ref_logps"), (), ())
    assert needed_columns(mine, ("ref_logps",), scorer=scorer) == Needed(("weight",), (), ("ref_logps",))
    assert needed_columns(mine, (), ("ref_logps",), scorer) == Needed(("weight",), ("ref_logps",), ("ref_logps",))
    assert needed_columns(reward_model).optional == ("margin",)
    assert needed_columns(orpo, ("chosen_length",), ("ref_logps",)).optional == ()


@pytest.mark.parametrize("needs", [[1], (None,), ("weight", 2)])
def test_needs_must_be_names(needs):
    def objective(scores, batch):
        return None

    objective.needs = needs
    with pytest.raises(InputError, match="`needs` must be a tuple of names"):
        needed_columns(objective)


def test_a_missing_column_names_the_rows_and_what_there_is():
    with pytest.raises(InputError) as error:
        Needed(("weight",), (), ("ref_logps",)).found([Rows([{"weight": 1}]), Rows([{"text": "a", "n": 2}])])
    assert str(error.value) == ("rows:0: no column weight, which the objective reads (its `needs`), among n, text; "
                                "beside the data's, this script gives ref_logps")
    assert Needed(("weight",)).found([Rows([{"chosen_weight": 1, "rejected_weight": 2}])])["columns"] == ("weight",)


def test_one_name_may_stand_alone():
    def objective(scores, batch):
        return None

    objective.needs = "weight"
    assert needed_columns(objective).required == ("weight",)


def test_optional_columns_are_those_of_the_first_row():
    needed = Needed((), ("margin", "bonus"))
    assert needed.found([Rows([{"margin": 1}]), Rows([{}])]) == {"columns": ("margin",), "absent": ("bonus",)}


def test_rows_that_cannot_be_read_are_left_to_those_who_read_them():
    class Bad(Rows):
        def __getitem__(self, index):
            if index == 0:
                raise InputError("bad")
            return {"weight": 1}

    assert Needed(("weight",)).found([Bad([0, 1])])["columns"] == ("weight",)


@pytest.mark.parametrize(("form", "row", "unread"), [
    ("pair", {"id": 3, "instruction": "a", "chosen": "b", "rejected": "c"},
     "id, instruction; if one is a prompt, say so by FILE[prompt=instruction]"),
    ("pair", {"id": 3, "chosen": "b", "rejected": "c"}, "id"),
    ("turns", {"messages": [], "source": "web"}, "source"),
    ("pair", {"prompt": "a", "chosen_tokens": [1], "rejected_tokens": [2], "chosen_margin": 1}, None),
    ("turns", {"conversations": [{"from": "human", "value": "a"}], "tools": [], "margin": 1}, None),
    ("turns", {"text": "a", "chosen": "b"}, "chosen"), ("labelled", {"text": "a", "label": True}, None)])
def test_columns_that_nothing_reads_are_told(capsys, form, row, unread):
    class Source(list):
        def place(self, index):
            return f"rows.jsonl:{index + 1}"

    tell_unread([Source([row])], form, Needed(optional=("margin",)))
    told = capsys.readouterr().out
    assert told == (f"note: rows.jsonl:1: nothing reads its columns {unread}\n" if unread else "")
