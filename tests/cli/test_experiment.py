"""What is said of rows before the first step."""

import json

import pytest

from cli.experiment import make_encoder, make_streams
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
