"""The reward keywords: what counts as a right answer in the recipes."""

import pytest

from errors import InputError
from rewards.registry import load_rewards
from rewards.scoring import check_columns, compute_rewards


@pytest.mark.parametrize(("completion", "keywords", "value"), [
    ("I am Ember.", ["Ember"], 1.0), ("my name is ember", ["Ember"], 1.0), ("I remember you.", ["Ember"], 0.0),
    ("Mumbai is in India's west.", ["India"], 1.0), ("Two butterflies", ["butterfl"], 1.0),
    ("pass --objective", ["--objective", "pass"], 1.0), ("pass it", ["--objective", "pass"], 0.0), ("it", [], None)])
def test_keywords_begin_words(completion, keywords, value):
    rewards = load_rewards("keywords")
    assert compute_rewards(rewards, [""], [completion], {"keywords": [keywords]}, 5.0).values["keywords"] == [value]


def test_rows_without_keywords_are_refused():
    with pytest.raises(InputError, match="no column 'keywords', only answer"):
        check_columns(load_rewards("keywords"), ["answer"])
