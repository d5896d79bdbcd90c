"""Ten families' chat templates: the text of transformers' own apply_chat_template, and what of it is learned.

chat_families.py says where the texts come from. What is learned (masks.json) was written by
`python -m pytest tests/data/test_chat_templates.py` with WRITE_MASKS set, and read by eye: see there.
"""

import json
import os
from collections import Counter

import pytest
from chat_families import FIXTURES, FOLDER, open_family

from data.chat import encode_prompt, encode_turns, render, render_answered
from errors import InputError

MASKS = FOLDER / "masks.json"
CASES = [(family, name) for family, found in FIXTURES["rendered"].items() for name in found]


def parts(record):
    return record["messages"], {name: value for name, value in record.items() if name != "messages"}


def shown(tokenizer, row):
    """A row as text, what is learned between ⟦ and ⟧."""
    pieces, previous = [], 0
    for token, on in zip(row.tokens, row.loss_mask, strict=True):
        if bool(on) != bool(previous):
            pieces.append([])
            previous = on
        if not pieces:
            pieces.append([])
        pieces[-1].append(token)
    texts = [tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces]
    return "".join(f"⟦{text}⟧" if place % 2 else text for place, text in enumerate(texts))


@pytest.mark.parametrize(("family", "name"), CASES)
def test_texts_are_those_of_transformers(family, name):
    expected, (messages, columns) = FIXTURES["rendered"][family][name], parts(FIXTURES["conversations"][name])
    tokenizer = open_family(family)
    assert render(tokenizer, messages, **columns) == expected["whole"]
    assert render(tokenizer, messages[:-1], True, **columns) == expected["prompt"]
    if "ids" in expected:
        assert tokenizer.encode(expected["whole"]) == [int(each) for each in expected["ids"].split()]


def learned(family, name):
    """The rows of a conversation under a family's template, with what happened to them; or why there are none."""
    tokenizer, (messages, columns) = open_family(family), parts(FIXTURES["conversations"][name])
    try:
        rows = encode_turns(tokenizer, messages, **columns)
    except InputError as error:
        return {"error": str(error)}
    events = sum((Counter(row.events) for row in rows), Counter())
    return {"rows": [shown(tokenizer, row) for row in rows]} | ({"events": dict(events)} if events else {})


def test_what_is_learned_is_what_was_read_by_eye():
    found = {family: {name: learned(family, name) for name in FIXTURES["conversations"]}
             for family in FIXTURES["families"]}
    if os.environ.get("WRITE_MASKS"):
        MASKS.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(MASKS.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_turn_follows_the_prompt_that_the_model_will_see(family, name):
    """Of the last turn: its row begins with the prompt's ids, and nothing before it in the row is another's."""
    tokenizer, (messages, columns) = open_family(family), parts(FIXTURES["conversations"][name])
    row = encode_turns(tokenizer, messages, **columns)[-1]
    prompt = encode_prompt(tokenizer, messages[:-1], **columns).tokens
    assert row.tokens == tokenizer.encode(render_answered(tokenizer, messages, **columns))
    assert row.tokens[: len(prompt)] == prompt
    assert row.loss_mask[len(prompt)] == 1
    assert row.tokens[max(i for i, on in enumerate(row.loss_mask) if on)] in tokenizer.eos_ids
