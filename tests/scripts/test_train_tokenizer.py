"""scripts.train_tokenizer: a folder that loads, whole or not at all, and one line for every error."""

import pytest

from data.tokenizer import load_tokenizer

ROWS = [{"text": f"def f_{i}(x):\n    return x + {i}\n\n\nprint(f_{i}({i}))\n"} for i in range(200)]


@pytest.fixture
def train(run_script, write_rows, tmp_path):
    data = write_rows("rows.jsonl", ROWS)

    def run(**flags):
        flags = {"data": data, "output": tmp_path / "new" / "mine", "vocab_size": 290} | flags
        return run_script("train_tokenizer", *(part for name, value in flags.items()
                                               for part in (f"--{name.replace('_', '-')}", value)))

    return run


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_folder_loads_and_the_last_lines_say_what_came_of_it(train, tmp_path, model_type):
    status, out, err = train(model_type=model_type)
    assert (status, err) == (0, "")
    tokenizer = load_tokenizer(tmp_path / "new" / "mine")
    text = ROWS[7]["text"] + "\t\r\n  🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 290
    assert "290 pieces, " in out
    assert f"next: python -m scripts.pretrain --tokenizer {tmp_path / 'new' / 'mine'}" in out.splitlines()[-1]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine"]


def test_an_empty_folder_is_filled_and_a_full_one_left_alone(train, tmp_path):
    (tmp_path / "here").mkdir()
    assert train(output=tmp_path / "here")[0] == 0
    before = (tmp_path / "here" / "tokenizer.model").read_bytes()
    status, _, err = train(output=tmp_path / "here", vocab_size=300)
    assert status == 1
    assert "exists and is not empty; name a new folder" in err
    assert (tmp_path / "here" / "tokenizer.model").read_bytes() == before


def test_the_output_does_not_appear_when_saving_fails(train, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("data.sentencepiece_tokenizer.write_config", fail)
    with pytest.raises(OSError, match="disk full"):
        train()
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(("flags", "message"), [
    ({"vocab_size": 100_000}, "--vocab-size 100000 is more than the text has pieces for; give at most"),
    ({"vocab_size": 100}, "--vocab-size 100 is too small"),
    ({"vocab_size": 0}, "--vocab-size must be above 0"),
    ({"max_bytes": 0}, "--max-bytes must be above 0"),
    ({"seed": -1}, "--seed must be from 0"),
    ({"data": "none.jsonl"}, "none.jsonl: cannot be read"),
])
def test_errors_are_one_line(train, tmp_path, flags, message):
    status, _, err = train(**flags)
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "new").exists()


def test_rows_of_tokens_and_an_output_that_is_a_file(train, write_rows):
    data = write_rows("tokens.jsonl", [{"tokens": [1, 2]}])
    assert "tokens.jsonl:1: the row has tokens" in train(data=data)[2]
    assert "exists and is not empty" in train(output=data)[2]
    assert "no folder can be made in" in train(output=f"{data}/below")[2]
