"""What counts as a right answer in the recipes."""

import pytest

from scripts.quickstart import is_right


@pytest.mark.parametrize(("completion", "keywords", "right"), [
    ("I am Ember.", ["Ember"], True), ("my name is ember", ["Ember"], True), ("I remember you.", ["Ember"], False),
    ("Mumbai is in India's west.", ["India"], True), ("Two butterflies", ["butterfl"], True),
    ("pass --objective", ["--objective", "pass"], True), ("pass it", ["--objective", "pass"], False)])
def test_keywords_begin_words(completion, keywords, right):
    assert is_right({"completion": completion, "keywords": keywords}) == right
