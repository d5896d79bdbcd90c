"""What is said of rows before the first step, and what the rows that are read by then decide."""

import json

import pytest

from batch import MOST_LENGTHS
from cli import experiment
from cli.experiment import make_encoder, make_streams
from data.batches import TrainingBatches
from data.sources import open_in_order, parse_source
from errors import InputError
from scripts import sft


@pytest.mark.parametrize(("lengths", "too_long", "told"), [
    ((9, 12), "truncate", True), ((9, 12), "drop", None), ((9, 8), "truncate", False), ((4, 5), "error", False)])
def test_rows_that_are_all_too_long_are_told(tmp_path, capsys, lengths, too_long, told):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"tokens": [1] * length}) + "\n" for length in lengths))
    flags = sft.Config(model="m", data=(parse_source(str(tmp_path / "rows.jsonl")),), output_dir="runs/x", max_steps=1,
                       max_length=8, too_long=too_long)
    encoder = make_encoder(flags, "none", None, 64, 32)
    if told is None:
        with pytest.raises(InputError, match="none of 2 rows can be trained on: rows_dropped 2; look at --too-long"):
            make_streams(flags, "none", open_in_order(flags.data), encoder, 32)
        return
    make_streams(flags, "none", open_in_order(flags.data), encoder, 32)
    out = capsys.readouterr().out
    assert out.startswith("warning: every one of 2 rows that were checked is longer than 8 tokens") == told
    assert bool(out) == told


@pytest.mark.parametrize("form", ["turns", "pair"])
@pytest.mark.parametrize("checked", [10_000, 30])
def test_rows_are_padded_to_a_few_lengths_that_suit_them(tmp_path, monkeypatch, form, checked):
    """Chosen by the rows that are checked; a longer one of a large data set has a place, too."""
    monkeypatch.setattr(experiment, "CHECKED", checked)
    lengths = [9 + number % 90 for number in range(200)] + [3000]
    names = ("tokens",) if form == "turns" else ("chosen_tokens", "rejected_tokens")
    (tmp_path / "rows.jsonl").write_text("".join(
        json.dumps({name: [1 + place] * (length - 4 * place) for place, name in enumerate(names)}) + "\n"
        for length in lengths))
    flags = sft.Config(model="m", data=(parse_source(str(tmp_path / "rows.jsonl")),), output_dir="runs/x",
                       max_steps=10**6, batch_size=4)
    encoder = make_encoder(flags, "none", None, 64, 2**17, form)
    streams = make_streams(flags, "none", open_in_order(flags.data), encoder, 2**17)
    if checked > len(lengths):
        assert len(streams.lengths) <= MOST_LENGTHS
        assert streams.lengths[-1] == 3000 == streams.length
    else:
        assert [each for each in streams.lengths if each > 38] == [40 * 2**n for n in range(12)] + [2**17]
    batches = TrainingBatches(streams, range(4))
    found = [next(batches)["tokens"].shape[1] for _ in range(51)]
    assert {*found} <= {*streams.lengths}
    assert sum(found) < 51 * (70 if checked > len(lengths) else 140) + 4096  # the rows have 54 on average
