"""reasoning-gym as a source: problems by index, the same every time, small to send, and what it cannot make."""

import json
import pickle

import pytest

from data.sources import DataSource, open_source, parse_source
from errors import InputError


def rows(text, places):
    source = open_source(parse_source(text))
    return [source[place] for place in places]


def test_rows_have_all_that_verifiers_ask_for():
    source = open_source(parse_source("gym:chain_sum(size=5, seed=7, min_terms=2, max_terms=2)@2"))
    assert len(source) == 5
    row = source[3]
    assert sorted(row) == ["answer", "metadata", "prompt", "question", "task"]
    assert row["prompt"] == row["question"]
    assert row["task"] == "chain_sum"
    expression = row["metadata"]["expression"].split()
    assert len(expression) == 3
    sign = 1 if expression[1] == "+" else -1
    assert int(row["answer"]) == int(expression[0]) + sign * int(expression[2])
    assert source.place(3) == "gym:chain_sum(size=5, seed=7, min_terms=2, max_terms=2) row 3"
    assert len(open_source(DataSource("gym:chain_sum"))) == 1000
    assert len(list(source)) == 5
    with pytest.raises(IndexError):
        source[5]
    assert source[-1] == source[4]


def test_a_weight_follows_the_arguments():
    assert parse_source("gym:chain_sum(seed=7)@0.5") == DataSource("gym:chain_sum(seed=7)", 0.5)


@pytest.mark.parametrize("task", ["chain_sum", "countdown", "rearc", "knights_knaves", "sudoku"])
def test_a_row_depends_on_its_index_alone(task):
    there = rows(f"gym:{task}(seed=7)", range(4))
    assert rows(f"gym:{task}(seed=7)", [3, 0, 2, 1]) == [there[place] for place in (3, 0, 2, 1)]
    assert rows(f"gym:{task}(seed=7, size=4)", range(4)) == there
    assert rows(f"gym:{task}(seed=8)", range(4)) != there
    assert rows(f"gym:{task}", range(4)) == rows(f"gym:{task}(seed=0)", range(4))
    assert len({row["prompt"] for row in there}) == 4


def test_a_pickle_is_small_and_the_same_again():
    source = open_source(DataSource("gym:countdown(size=3, seed=2)"))
    state = pickle.dumps(source)
    assert len(state) < 200
    again = pickle.loads(state)  # noqa: S301
    assert (list(again), again.place(2)) == (list(source), source.place(2))


@pytest.mark.parametrize("task", ["rearc", "countdown", "sudoku", "count_primes", "figlet_font"])
def test_metadata_are_what_json_gives_back(task):
    [row] = rows(f"gym:{task}", [1])
    assert json.loads(json.dumps(row)) == row


def test_columns_may_take_other_names():
    source = open_source(DataSource("gym:countdown(size=3)", columns={"solution": "answer"}))
    assert "answer" not in source[0]
    assert source[0]["solution"]


@pytest.mark.parametrize(("text", "message"), [
    ("gym:chain_sm", "no such task; give one like chain_sum"),
    ("gym:", "no such task"),
    ("gym:chain_sum(terms=2)", "no parameter 'terms'; it has min_terms"),
    ("gym:chain_sum(min_terms=0)", "takes no such parameters .min_terms must be positive"),
    ("gym:chain_sum(min_terms='x')", "takes no such parameters"),
    ("gym:chain_sum(size=0)", "size 0 and seed 0 must be whole numbers"),
    ("gym:chain_sum(seed=None)", "seed None must be whole numbers"),
    ("gym:chain_sum(size=True)", "size True and"),
    ("gym:chain_sum(2)", "arguments must be given by name"),
    ("gym:chain_sum(size=", "cannot be read"),
    ("gym:chain_sum(size=open('x'))", "cannot be read"),
    ("gym:composite", "Must specify at least one dataset"),
])
def test_what_cannot_be_made_is_one_line(text, message):
    with pytest.raises(InputError, match=message) as error:
        open_source(DataSource(text))
    assert "\n" not in str(error.value)
