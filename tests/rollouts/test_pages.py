"""Pages: what is kept of contexts is found again, goes oldest first, and none is lost."""

import random

import pytest

from rollouts.pages import Pages

SIZE = 4


def put(pages, tokens):
    """A context that is read, or gone on from, and left; how much of it was known."""
    match = pages.match(tokens)
    pages.share([*match.pages, *match.copied])
    taken = pages.take(-(-len(tokens) // SIZE) - len(match.pages))
    pages.release(match.copied)
    held = [*match.pages, *taken]
    pages.remember(tokens, held)
    pages.release(held)
    return match.length


def test_a_further_turn_reads_the_new_tokens_alone():
    pages = Pages(16, SIZE)
    context = list(range(10))
    assert put(pages, context) == 0
    for _ in range(4):
        context = [*context, 1, 2, 3]
        assert put(pages, context) == len(context) - 3
    assert put(pages, [*context[:7], 99]) == 7


def test_what_was_used_longest_ago_goes_first_and_of_a_context_its_end():
    pages = Pages(6, SIZE)
    contexts = [[start] * 8 for start in range(3)]
    assert [put(pages, each) for each in contexts] == [0, 0, 0]
    assert pages.match(contexts[0]).length == 8
    put(pages, [*contexts[0][:4]])  # used again, its beginning alone
    put(pages, [9] * 8)  # takes two pages: the end of context 0, then that of context 1
    assert [pages.match(each).length for each in contexts] == [4, 4, 8]


def test_what_is_in_use_is_not_taken():
    pages = Pages(4, SIZE)
    put(pages, [1] * 8)
    match = pages.match([1] * 8)
    pages.share(match.pages)
    assert pages.take(3) is None
    assert len(pages.take(2)) == 2
    assert pages.match([1] * 8).length == 8


def test_what_is_forgotten_is_free():
    pages = Pages(4, SIZE)
    put(pages, [1] * 8)
    pages.forget_all()
    assert pages.match([1] * 8).length == 0
    assert sorted(pages.take(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_contexts_at_random_are_known_as_far_as_they_can_be(seed):
    """Where nothing has to go, what is known is the longest beginning that any context had; everywhere, no page is
    lost, and none stands in the tree twice."""
    draw = random.Random(seed)
    large, small, before = Pages(4096, SIZE), Pages(12, SIZE), []
    for _ in range(200):
        base = draw.choice(before)[: draw.randint(0, 12)] if before and draw.random() < 0.7 else []
        tokens = [*base, *(draw.randrange(3) for _ in range(draw.randint(1, 12)))]
        longest = max((common(tokens, each) for each in before), default=0)
        known = large.match(tokens).length
        assert known <= longest
        assert known >= longest // SIZE * SIZE
        put(large, tokens)
        put(small, tokens)
        before.append(tokens)
        for pages in (large, small):
            assert sorted([*pages._free, *pages._nodes]) == list(range(pages.count))
            assert pages._idle.keys() == pages._nodes.keys()


def common(one, other):
    return next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
