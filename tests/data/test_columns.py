"""Numbers of rows travel to the objectives that ask for them: of the row, of each token, of a pair's sides, packed."""

import dataclasses

import numpy as np
import pytest

from batch import Row, in_order
from data.batches import TrainingBatches
from data.columns import with_columns
from data.reading import Encoder, read_all, read_record
from data.streams import Streams
from errors import InputError

ROW = Row(np.asarray([5, 6, 7], np.int32), np.asarray([0, 1, 1], np.float32))


class Rows(list):
    def place(self, index):
        return f"rows:{index}"


def encoder(**changes):
    return Encoder(None, 100, 32, **{"form": "turns"} | changes)


def numbers(row):
    return {name: np.asarray(value).tolist() for name, value in row.extra.items()}


def test_only_what_is_asked_for_travels():
    record = {"weight": 2, "other": 3, "perfect": True, "advantages": [0, 1.5, -1]}
    assert numbers(with_columns(ROW, record, ())) == {}
    found = with_columns(ROW, record, ("weight", "perfect", "advantages"))
    assert numbers(found) == {"weight": 2.0, "perfect": 1.0, "advantages": [0, 1.5, -1]}
    assert numbers(found.cut(2)) == {"weight": 2.0, "perfect": 1.0, "advantages": [0, 1.5]}
    assert numbers(found.spread()) == {"weight": [2] * 3, "perfect": [1] * 3, "advantages": [0, 1.5, -1]}


@pytest.mark.parametrize(("value", "words"), [
    (None, "no column weight among text; the objective reads it"), ("2", "weight must be a number, .* not 2"),
    (float("nan"), "weight must be a number"), (10**400, "weight must be a number"), (1e39, "weight must be a number"),
    ([float("inf")] * 3, "weight must be a number"), ([1.0, 2.0], "hold one number for each of the 3 tokens, not 1 2"),
    ([1, None, 2], "weight must be a number"), ({"a": 1}, "weight must be a number, .* not a 1"),
    ([[1], [2], [3]], "weight must be a number")])
def test_what_is_no_number_is_named(value, words):
    with pytest.raises(InputError, match=words):
        with_columns(ROW, {"text": "x"} | ({} if value is None else {"weight": value}), ("weight",))


def test_sides_of_a_pair_have_numbers_of_their_own():
    pair = {"chosen_tokens": [1, 2], "rejected_tokens": [1, 3, 4], "margin": 0.5, "chosen_score": 2,
            "rejected_score": -1, "chosen_ref_logps": [0, -1], "rejected_ref_logps": [0, -2, -3]}
    rows, _ = read_record(0, Rows([pair]), encoder(form="pair", columns=("margin", "score", "ref_logps")))
    assert [numbers(row) for row in rows] == [{"margin": 0.5, "score": 2, "ref_logps": [0, -1]},
                                              {"margin": 0.5, "score": -1, "ref_logps": [0, -2, -3]}]
    with pytest.raises(InputError, match="rows:0: no column weight among chosen_ref_logps, chosen_score"):
        read_record(0, Rows([pair]), encoder(form="pair", columns=("weight",)))
    with pytest.raises(InputError, match="rows:0: there is a column margin, which the first row has not"):
        read_record(0, Rows([pair]), encoder(form="pair", absent=("margin",)))


def test_labelled_rows_have_theirs_and_the_mismatched_ones_none():
    rows = Rows([{"tokens": [1, 2, 3], "loss_mask": [0, 0, 1], "label": True, "w": 2, "t": [1, 2, 3]},
                 {"tokens": [1, 5, 6, 7], "loss_mask": [0, 1, 1, 1], "label": False, "w": 3, "t": [1, 2, 3, 4]}])
    (own, other), _ = read_record(0, rows, encoder(form="labelled", columns=("label", "w", "t")))
    assert numbers(own) == {"label": 1, "w": 2, "t": [1, 2, 3]}
    assert numbers(other) == {"label": 0, "w": 0, "t": [0] * len(other.tokens)}


def test_a_batch_has_numbers_of_rows_and_of_tokens():
    rows = Rows([{"tokens": [1] * length, "weight": length, "each": list(range(length))} for length in (3, 5)])
    found, _ = read_all([rows], encoder(columns=("weight", "each")))
    [batch] = in_order(found, batch_size=2)
    assert batch["weight"].tolist() == [3, 5]
    assert batch["each"].tolist() == [[0, 1, 2, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 0, 0, 0]]


@pytest.mark.parametrize("packing", ["first-fit", "concat-then-split"])
def test_packed_a_rows_number_stands_at_each_of_its_tokens(packing):
    rows = Rows([{"tokens": [number] * (3 + number % 9), "weight": number / 2} for number in range(1, 40)])
    made = dataclasses.replace(encoder(columns=("weight",)), max_length=None if packing != "first-fit" else 16)
    batches = TrainingBatches(Streams((rows,), (1.0,), made, 3, 16, packing, 0), [0, 1, 2])
    for _ in range(8):
        batch = next(batches)
        used = batch["segment_ids"] > 0
        assert batch["weight"].dtype == np.float32
        np.testing.assert_array_equal(batch["weight"][used], batch["tokens"][used] / 2)
        assert not batch["weight"][~used].any()
        assert (batch["segment_ids"].max(axis=1) > 1).any()


def test_a_row_without_the_column_is_named_or_skipped():
    rows = Rows([{"tokens": [1, 2], "weight": 1}, {"tokens": [1, 2]}])
    with pytest.raises(InputError, match="rows:1: no column weight among tokens; the objective reads it"):
        read_all([rows], encoder(columns=("weight",)))
    found, counts = read_all([rows], encoder(columns=("weight",), bad_rows="skip"))
    assert (len(found), counts["rows_skipped"]) == (1, 1)
