"""Stop strings: found at the token that completes them, whatever tokens they lie in, in linear time."""

import random

import pytest

from data.tokenizer import load_tokenizer
from models.pretrained import EMBEDDED, open_pretrained
from rollouts.stops import CONTEXT, UNREAD, Ends, StopFinder, make_ends

HALF = 230
"""a token of one byte that is no character"""


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(open_pretrained(EMBEDDED).tokenizer)


def first_place(tokens, strings, decode):
    """By decoding all tokens anew each time."""
    return next((at for at in range(1, len(tokens) + 1) if any(each in decode(tokens[:at]) for each in strings)), None)


def found_place(tokens, ends):
    finder = StopFinder(ends)
    return next((at for at, token in enumerate(tokens, 1) if finder.completes(token)), None)


def test_places_are_those_of_the_whole_text(tokenizer):
    draw = random.Random(0)
    texts = ["The cat sat on the mat.\n\nQuestion: why? 你好世界 \N{GRINNING FACE} done",
             "  spaces   and\ttabs\n\n\nend ### x",
             "naïve café — “quoted” ½ \N{GRINNING FACE}\N{THUMBS UP SIGN} ok"]
    for text in texts:
        for _ in range(60):
            tokens = tokenizer.encode(text)
            for _ in range(draw.choice([0, 0, 1, 3, 20])):  # tokens of anything in between
                tokens.insert(draw.randrange(len(tokens)), draw.choice([HALF, draw.randrange(48000)]))
            start = draw.randrange(len(text) - 3)
            strings = [text[start : start + draw.randint(1, 6)], "\n\nQ"]
            assert found_place(tokens, make_ends(tokenizer, strings)) == first_place(tokens, strings, tokenizer.decode)


@pytest.mark.parametrize("kind", ["text", "bytes that are no character"])
def test_each_token_is_decoded_a_bounded_number_of_times(tokenizer, kind):
    decoded = 0

    def decode(tokens):
        nonlocal decoded
        decoded += len(tokens)
        return tokenizer.decode(tokens)

    assert tokenizer.decode([HALF]) == "\N{REPLACEMENT CHARACTER}"
    draw = random.Random(1)
    tokens = [HALF if kind != "text" else draw.randrange(48000) for _ in range(4096)]
    assert found_place(tokens, Ends((), ["\n\n\n\nnever so"], decode)) is None
    assert decoded < len(tokens) * 3 * (UNREAD + 2 * CONTEXT)
