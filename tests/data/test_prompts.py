"""Prompts: what of a row is asked and what rewards get; an order that goes on from a number."""

import collections
import json

import pytest

from data.prompts import Prompt, PromptBatches, read_prompts
from errors import InputError


class Characters:
    """A token a character, without a chat template."""

    chat_template, bos_id, bos_token = None, None, ""

    def encode(self, text, add_special_tokens=False):
        return [ord(each) for each in text]


class Rows(list):
    def place(self, index):
        return f"rows.jsonl:{index + 1}"


def read(*rows, max_length=10):
    return read_prompts(Rows(rows), Characters(), vocab_size=256, max_length=max_length)


def test_columns_beside_the_prompt_are_for_rewards():
    [prompt] = read({"prompt": "ab", "answer": 3, "metadata": {"k": [1]}})
    assert prompt == Prompt([97, 98], "ab", {"answer": 3, "metadata": {"k": [1]}})


def test_pretokenised_prompts_pass_through():
    assert read({"tokens": [5, 6], "answer": 1}) == [Prompt([5, 6], "", {"answer": 1})]


@pytest.mark.parametrize(("mask", "tokens"), [
    ([0, 0, 1, 1], [5, 6]),
    ([0, 1, 0, 0.5], [5, 6, 7]),  # an earlier answer stays
    ([False, True, True, False], [5, 6, 7, 8]),  # as messages do that end with another's
    (None, [5, 6, 7, 8]),
])
def test_tokens_that_end_with_an_answer_are_cut_before_it(mask, tokens):
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    row = {"tokens": [5, 6, 7, 8], "messages": chat, "answer": 1} | ({"loss_mask": mask} if mask else {})
    assert read(row) == [Prompt(tokens, chat[:1], {"answer": 1})]


@pytest.mark.parametrize(("row", "line"), [({"prompt": ""}, "rows.jsonl:1: a prompt of 0 tokens"),
                                           ({"prompt": "x" * 11}, "rows.jsonl:1: a prompt of 11 tokens"),
                                           ({"question": "x"}, "rows.jsonl:1: no known columns")])
def test_a_bad_row_is_named(row, line):
    with pytest.raises(InputError, match=line):
        read(row)


def test_what_is_too_long_is_left_out_where_it_may_be():
    rows = Rows([{"prompt": "x" * count, "n": count} for count in (3, 11, 10, 400)])
    kept = read_prompts(rows, Characters(), vocab_size=256, max_length=10, drop_long=True)
    assert [prompt.columns["n"] for prompt in kept] == [3, 10]
    with pytest.raises(InputError, match="rows.jsonl:1: a prompt of 0 tokens"):
        read_prompts(Rows([{"prompt": ""}]), Characters(), vocab_size=256, max_length=10, drop_long=True)
    with pytest.raises(InputError, match="rows.jsonl:1: a prompt of 11 tokens, .* or set --too-long drop"):
        read({"prompt": "x" * 11})


def batches(start=None, weights=(1.0,), sizes=(7,), seed=0):
    sources = [[Prompt([place, index], "", {}) for index in range(size)] for place, size in enumerate(sizes)]
    return PromptBatches(sources, weights, 3, seed, start)


def take(stream, count):
    return [tuple(prompt.tokens) for _ in range(count) for prompt in next(stream)]


def test_every_epoch_has_every_prompt_in_a_new_order():
    drawn = take(batches(), 14)
    epochs = [drawn[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == [(0, index) for index in range(7)] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 3
    assert take(batches(seed=1), 14) != drawn


def test_it_goes_on_from_its_position():
    whole = take(batches(), 9)
    stream = batches()
    take(stream, 4)
    position = json.loads(json.dumps(stream.position()))
    assert take(batches(position), 5) == whole[12:]


def test_sources_are_mixed_by_weight():
    drawn = collections.Counter(place for place, _ in take(batches(weights=(3.0, 1.0), sizes=(5, 4)), 80))
    assert drawn[0] == pytest.approx(180, abs=4)
