"""Exact and near duplicates: against brute force on random text, no chains, the best row kept, nothing lost."""

import itertools
import random

import pytest

from curation.duplicates import exact_duplicates, near_duplicates, rows_per_band
from curation.stages import Drop, Row
from errors import InputError


def make_rows(texts, **notes):
    return [Row("some.jsonl", index, {"text": text}, {name: values[index] for name, values in notes.items()})
            for index, text in enumerate(texts)]


def kept(stage, rows):
    """Indices of the rows that are kept; {index: index of the row kept instead} of the others."""
    out = list(stage(iter(rows)))
    assert [(each.row if isinstance(each, Drop) else each) for each in out] == rows
    assert [type(each) for each in out] == [type(each) for each in stage(rows)]  # a sequence is read twice instead
    dropped = {each.row.index: each.kept_instead[1] for each in out if isinstance(each, Drop)}
    return [row.index for row in rows if row.index not in dropped], dropped


def similarity(a, b, n=5):
    """Jaccard of lower-case texts of plain words."""
    def ngrams(text):
        words = text.split()
        return {tuple(words[at : at + n]) for at in range(max(1, len(words) - n + 1))}
    return len(ngrams(a) & ngrams(b)) / len(ngrams(a) | ngrams(b))


def edited(draw, words, count):
    words = list(words)
    for place in draw.sample(range(len(words)), count):
        words[place] = f"new{draw.randrange(10**6)}"
    return " ".join(words)


def test_exact_duplicates_differ_in_case_white_space_and_form_alone():
    texts = ["Caf\u00e9 au lait",
             " cafe\u0301  AU\nlait ", "Cafe au lait", "3 + 4", "3 * 4", "x\u200b+y", "X+Y", "", " "]
    assert kept(exact_duplicates(), make_rows(texts)) == ([0, 2, 3, 4, 5, 7], {1: 0, 6: 5, 8: 7})


def test_exact_duplicates_of_columns_and_by_preference():
    rows = [Row("a", 0, {"prompt": "p", "completion": "x"}, {"quality": 1}),
            Row("b", 0, {"prompt": "P", "completion": "y"}, {"quality": 3}),
            Row("b", 1, {"prompt": [{"role": "user", "content": "p"}], "completion": "z"}, {"quality": 3})]
    stage = exact_duplicates(columns=("prompt",), prefer="quality")
    found = [each.kept_instead if isinstance(each, Drop) else each for each in stage(rows)]
    assert found == [("b", 0), rows[1], ("b", 0)]
    assert kept(exact_duplicates(), rows[1:])[1] == {}
    with pytest.raises(InputError, match="no number 'fun'"):
        list(exact_duplicates(prefer="fun")(rows))


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_near_duplicates_are_those_of_brute_force(threshold):
    draw = random.Random(0)
    texts = []
    for _ in range(40):
        words = [f"w{draw.randrange(500)}" for _ in range(draw.randrange(3, 60))]
        texts += [edited(draw, words, min(len(words), count)) for count in (0, 0, 1, 2, 4)]
    draw.shuffle(texts)
    indices, dropped = kept(near_duplicates(threshold=threshold), make_rows(texts))
    assert len(dropped) > 40
    for index, instead in dropped.items():
        assert instead in indices
        assert similarity(texts[index], texts[instead]) >= threshold
    missed = [pair for pair in itertools.combinations(indices, 2)
              if similarity(*(texts[index] for index in pair)) >= threshold]
    assert len(missed) <= 0.02 * len(dropped)


def test_near_duplicates_do_not_chain():
    words = [f"w{number}" for number in range(400)]
    texts = [" ".join(words[start : start + 100]) for start in range(0, 300, 8)]  # each much like its neighbours alone
    indices, dropped = kept(near_duplicates(threshold=0.8), make_rows(texts))
    assert len(indices) > len(texts) / 4
    assert all(similarity(texts[index], texts[instead]) >= 0.8 for index, instead in dropped.items())


def test_the_best_of_near_duplicates_is_kept():
    text = " ".join(f"w{number}" for number in range(60))
    rows = make_rows([text, f"{text} more", f"{text} else"], quality=[0.1, 0.5, 0.9])
    assert kept(near_duplicates(prefer="quality"), rows) == ([2], {0: 2, 1: 2})
    assert kept(near_duplicates(), rows) == ([0], {1: 0, 2: 0})


def test_operators_and_short_texts_count():
    texts = ["What is 3 + 4?", "What is 3 * 4?", "what is 3+4", "yes", "no", "!!!", "???",
             "\u4f60\u597d\u5417", "\u4f60\u597d\u5417?"]
    assert kept(near_duplicates(), make_rows(texts))[1] == {2: 0, 8: 7}


def test_spread_over_workers_it_gives_the_same(monkeypatch):
    draw = random.Random(1)
    rows = make_rows([edited(draw, ["a", "b", "c", "d", "e", "f"] * 3, draw.randrange(2)) for _ in range(50)])
    expected = list(near_duplicates()(rows))
    monkeypatch.setattr("curation.duplicates.ROWS_AT_A_TIME", 7)
    asked = []

    def spread(work, count):
        asked.append(count)
        return map(work, range(count))

    assert list(near_duplicates(spread=spread)(rows)) == expected == list(near_duplicates()(iter(rows)))
    assert asked == [8]
    assert any(isinstance(each, Drop) for each in expected)


def test_bands_find_a_pair_at_the_threshold():
    for threshold in (0.3, 0.5, 0.8, 0.95, 1.0):
        size = rows_per_band(threshold, 128)
        assert 1 - (1 - threshold**size) ** (128 // size) >= 0.99
        assert size == 128 or 1 - (1 - threshold ** (size + 1)) ** (128 // (size + 1)) < 0.99
    assert rows_per_band(0.001, 128) == 1


def test_what_makes_no_sense_is_one_line():
    with pytest.raises(InputError, match="threshold 80"):
        near_duplicates(threshold=80)
    with pytest.raises(InputError, match="some.jsonl row 0: no column with text, only answer"):
        list(near_duplicates()([Row("some.jsonl", 0, {"answer": "x"})]))
    assert list(near_duplicates()([])) == [] == list(exact_duplicates()([]))


def test_rows_without_any_word_are_no_duplicates():
    assert kept(near_duplicates(), make_rows(["!!!", "???", "", "..."]))[1] == {}
