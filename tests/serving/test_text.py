"""Text as it comes is the whole text in parts, whatever the parts; and it ends before the first stop string."""

import random

import pytest

from serving.text import StopCutter, TextStream


def pieces(values, seed):
    """A sequence in random parts, each with whether it is the last."""
    draw, at = random.Random(seed), 0
    while at < len(values):
        size = draw.randint(1, 5)
        yield values[at : at + size], at + size >= len(values)
        at += size


@pytest.mark.parametrize("seed", range(40))
def test_a_stream_of_bytes_is_their_text(seed):
    """Tokens are bytes: characters are cut in their middle, and some bytes are no character's."""
    draw = random.Random(seed)
    tokens = [*"".join(draw.choices("aé€😀 \n", k=12)).encode(), *draw.choices(range(256), k=draw.choice([0, 3]))]

    def decode(tokens):
        return bytes(tokens).decode(errors="replace")

    stream, text = TextStream(decode), ""
    for part, last in pieces(tokens, seed):
        text += stream.add(part, last)
        assert decode(tokens).startswith(text)
    assert text == decode(tokens)


@pytest.mark.parametrize("seed", range(40))
def test_a_text_is_cut_at_the_stop_that_is_complete_first(seed):
    draw = random.Random(seed)
    text = "".join(draw.choices("abc", k=20))
    stops = ["".join(draw.choices("abc", k=draw.randint(1, 4))) for _ in range(2)]
    cutter, given = StopCutter(stops), ""
    for part, last in pieces(text, seed):
        given += cutter.add(part, last)
    ends = sorted((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text)
    assert given == (text[: ends[0][1]] if ends else text)
    assert cutter.found == bool(ends)


def test_a_stop_that_does_not_come_holds_nothing_back_for_long():
    cutter = StopCutter(["\n\nQ:"])
    assert [cutter.add("a\n"), cutter.add("b"), cutter.add("\n\nQ"), cutter.add("", True)] == ["a", "\nb", "", "\n\nQ"]
