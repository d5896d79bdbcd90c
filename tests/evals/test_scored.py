"""What scripts.score says of a file: sums over its rows, with intervals; no row of the data without a line."""

import math

import numpy as np
import pytest

from batch import Row
from data.reading import Encoder
from data.sources import DataSource, open_source
from errors import InputError
from evals.scored import Records, as_line, form_of, read_records, summary
from evals.statistics import clustered_error, estimate, ratio


class Scores:
    """Of a language model."""

    def __init__(self, logps):
        self.logps, self.entropy = np.asarray(logps), np.zeros(len(logps))


class Rewards:
    """Of a reward model."""

    def __init__(self, reward):
        self.rewards = np.asarray(reward)


class Bytes:
    """A tokenizer of bytes."""

    def decode(self, tokens):
        return bytes(tokens).decode()


def row(tokens, mask=None):
    mask = [0.0] + [1.0] * (len(tokens) - 1) if mask is None else mask
    return Row(np.asarray(list(tokens), np.int32), np.asarray(mask, np.float32))


def test_ratios_are_means_where_all_weigh_alike_and_cover_what_they_estimate():
    random = np.random.default_rng(0)
    values = random.normal(size=30)
    alike, plain = ratio(2 * values, [2.0] * 30), estimate(values, range(30))
    assert alike == pytest.approx(plain)
    assert alike.standard_error == pytest.approx(clustered_error(values, np.arange(30)))
    held = 0
    for _ in range(400):
        weights = random.integers(1, 40, 25).astype(float)
        sums = weights * 2.0 + random.normal(size=25) * np.sqrt(weights) * 3
        of = ratio(sums, weights)
        held += of.low <= 2.0 <= of.high
    assert 0.92 < held / 400 < 0.98
    assert math.isnan(ratio([0.0], [0.0]).mean)
    assert ratio([3.0, 7.0], [2.0, 0.0])[:2] == (1, 1.5)
    assert ratio([3.0], [2.0]).high == math.inf


def test_loss_perplexity_and_bits_are_sums_over_the_file():
    rows = [row(b"abc"), row(b"abcde"), row("né!".encode())]
    scores = [Scores([0, -1, -1]), Scores([0, -3, -1, -1, -3]), Scores([0, -1, -1, -2])]
    found = summary(Records([(each,) for each in rows], [None] * 3, True, {}), scores, Bytes())
    total, targets, of_bytes = 2 + 8 + 4, 2 + 4 + 3, 2 + 4 + 3
    assert found["loss (nats a token)"].mean == pytest.approx(total / targets)
    assert found["perplexity"].mean == pytest.approx(math.exp(total / targets))
    assert found["perplexity"].low == pytest.approx(math.exp(found["loss (nats a token)"].low))
    assert found["bits per byte"].mean == pytest.approx(total / math.log(2) / of_bytes)
    assert "bits per byte" not in summary(Records([(each,) for each in rows], [None] * 3, False, {}), scores, Bytes())


def test_pairs_and_labels_have_accuracies_with_intervals():
    rows = [(row([1, 2]), row([1, 3]))] * 4
    scores = [Scores([0, value]) for value in (-1, -2, -1, -2, -3, -2, -2, -2)]
    found = summary(Records(rows, [None] * 4, False, {}), scores, None)
    accuracy = found["pairs whose chosen answer has the higher log-probability"]
    assert (accuracy.n, accuracy.mean) == (4, 2.5 / 4)
    assert 0 < accuracy.low < accuracy.mean < accuracy.high < 1
    rewards = [Rewards(value) for value in (2.0, 1.0, -1.0, 0.5)]
    by_pair = summary(Records(rows[:2], [None] * 2, False, {}), rewards, None)
    assert by_pair["pairs whose chosen answer has the higher reward"].mean == 0.5
    by_label = summary(Records([(row([1, 2]),)] * 4, [1.0, 0.0, 0.0, 1.0], False, {}), rewards, None)
    assert by_label["labels that the reward's sign agrees with"].mean == 0.75
    assert by_label["reward"].mean == pytest.approx(2.5 / 4)


@pytest.mark.parametrize(("too_long", "lengths", "count"), [("drop", [3, 0, 2], "rows_dropped"),
                                                           ("truncate", [3, 4, 2], "rows_truncated")])
def test_every_record_has_a_line_those_left_out_too(write, too_long, lengths, count):
    sources = [write([{"tokens": [1, 2, 3]}, {"tokens": [1] * 9}, {"tokens": [4, 5]}])]
    assert form_of(sources) == "row"
    records = read_records(sources, Encoder(None, 64, 4, too_long, training=False), iter)
    assert [sum(len(each.tokens) for each in rows) for rows in records.rows] == lengths
    assert records.counts[count] == 1
    assert not records.are_texts
    assert as_line((), ()) == {"left_out": True}
    with pytest.raises(InputError, match="longer than the 4 allowed"):
        read_records(sources, Encoder(None, 64, 4, training=False), iter)


def test_labels_of_other_kinds_and_bad_rows_are_passed_over(write):
    sources = [write([{"tokens": "none"}, {"tokens": [1, 2], "label": "spam"}, {"tokens": [1, 2], "label": False}])]
    records = read_records(sources, Encoder(None, 64, 8, bad_rows="skip", training=False), iter)
    assert records.labels == [None, None, 0.0]
    assert [len(rows) for rows in records.rows] == [0, 1, 1]
    assert records.counts["rows_skipped"] == 1
    with pytest.raises(InputError, match=r"rows\.jsonl:1: tokens must be .*--bad-rows skip leaves such rows out"):
        read_records(sources, Encoder(None, 64, 8, training=False), iter)


def test_pairs_are_read_as_pairs(write):
    sources = [write([{"chosen_tokens": [1, 2, 3], "rejected_tokens": [1, 2, 4]}])]
    assert form_of(sources) == "pair"
    records = read_records(sources, Encoder(None, 64, 8, training=False, form="pair"), iter)
    [rows] = records.rows
    line = as_line(rows, [Scores([0, -1, -2]), Scores([0, -1, -3])])
    assert line["chosen_logps"] == [0, -1, -2]
    assert line["rejected_loss_mask"] == [0, 1, 1]


@pytest.fixture
def write(tmp_path):
    import json

    def made(rows):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        return open_source(DataSource(str(tmp_path / "rows.jsonl")))

    return made
