"""Models that read the policy's tokens: what is refused of them, whatever flag names them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_model import write_model

from cli.readers import check_reader
from data.tokenizer import load_tokenizer
from errors import InputError


def opened(tokenizer, vocab_size=128, max_length=64):
    config = SimpleNamespace(vocab_size=vocab_size, max_length=max_length)
    return SimpleNamespace(tokenizer=Path(tokenizer), config=config)


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def renamed(tmp_path):
    """As many tokens, of which one is another."""
    folder = write_model(tmp_path / "renamed")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["é"] = content["model"]["vocab"].pop("7")
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def refusal(reader, policy, tokenizer, longest=64):
    with pytest.raises(InputError) as error:
        check_reader("--reference X", reader, policy, tokenizer, longest, "lower --max-length")
    return str(error.value)


def test_another_tokenizer_is_refused_by_what_differs(model, renamed, tmp_path):
    tokenizer, policy = load_tokenizer(model), opened(model)
    assert refusal(opened(renamed), policy, tokenizer) == (
        "--reference X: its tokenizer is not that of the policy: token 25 is '7' to the policy, and 'é' to it; give a "
        "model of the same family")
    (tmp_path / "none").mkdir()
    assert "not that of the policy: it has none" in refusal(opened(tmp_path / "none"), policy, tokenizer)


def test_too_few_embeddings_and_too_short_a_context_are_refused(model):
    tokenizer, policy = load_tokenizer(model), opened(model)
    assert "has embeddings for 127 tokens, and the policy may write 128" in refusal(
        opened(model, vocab_size=127), policy, tokenizer)
    assert refusal(opened(model, max_length=63), policy, tokenizer).endswith(
        "its context of 63 tokens is shorter than the longest row, 64; lower --max-length, or give another model")


def test_what_reads_every_token_may_read_more(model, renamed, tmp_path):
    """Vocabularies are padded to other sizes in one family; without a tokenizer, rows are tokens."""
    more = opened(write_model(tmp_path / "more"), vocab_size=192, max_length=4096)
    check_reader("--reference X", more, opened(model), load_tokenizer(model), 64, "")
    check_reader("--reference X", opened(renamed), opened(tmp_path), None, 64, "")
