"""Whether ids are the same text to another tokenizer: what differs is found and named, what does not matter is not."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data.same_tokens import difference
from data.tokenizer import load_tokenizer

LINES = ["the cat sat on the mat in 12 345 houses", "<tool>the other cats</tool>", "a naïve café, 你好 🙂"] * 20


@pytest.fixture(scope="module")
def content():
    """A byte-level BPE with a special token at each end of the vocabulary."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(LINES, trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    backend.add_tokens(["<tool>"])
    backend.add_special_tokens(["<turn>"])
    return json.loads(backend.to_str())


@pytest.fixture
def load(content, tmp_path):
    def load(change=lambda content: None):
        changed = json.loads(json.dumps(content))
        change(changed)
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(changed))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
        return load_tokenizer(folder)

    return load


def swap(one, other):
    def change(content):
        vocabulary = content["model"]["vocab"]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    return change


def merge_backwards(content):
    content["model"]["merges"].reverse()


def keep_digits_together(content):
    content["pre_tokenizer"]["pretokenizers"].pop(0)
    vocabulary = content["model"]["vocab"]
    a, b = (next(text for text, token in vocabulary.items() if token == place) for place in (298, 299))
    content["model"]["merges"] = content["model"]["merges"][:-2] + [["1", "2"], ["3", "4"]]
    for text, old in (("12", a), ("34", b)):
        vocabulary[text] = vocabulary.pop(old)


def forget_turns(content):
    content["added_tokens"].pop()


def rename_turns(content):
    content["added_tokens"][-1]["content"] = "<TURN>"


def lowercase(content):
    content["normalizer"] = {"type": "Lowercase"}


def add_padding(content):
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 302, "content": "[PAD]"})


@pytest.mark.parametrize(("change", "found"), [
    (swap("Ġthe", "Ġcat"), "token 265 is ' cat' to the policy, and ' the' to it"),
    (swap("Ģ", "ģ"), r"is b'\x80' to the policy, and b'\x81' to it"),  # neither of them a character by itself
    (merge_backwards, "where the policy writes tokens ["), (keep_digits_together, "and '12' to it"),
    (forget_turns, "token 301 is '<turn>' to the policy, and nothing to it"),
    (rename_turns, "token 301 is '<turn>' to the policy, and '<TURN>' to it"),
    (lowercase, "where the policy writes tokens [")
], ids=["tokens", "bytes", "merges", "digits", "gone", "renamed", "case"])
def test_what_differs_is_named(load, change, found):
    assert found in difference(load(), load(change))


def test_the_same_in_another_file_and_tokens_beyond_the_policys_are_no_difference(load, tmp_path):
    policy, more = load(), load(add_padding)
    policy.save(tmp_path / "saved")
    assert difference(policy, load_tokenizer(tmp_path / "saved")) is None
    assert difference(policy, more) is None
    assert difference(more, policy) == "token 302 is '[PAD]' to the policy, and nothing to it"


def test_digits_that_are_split_otherwise(load):
    """In one vocabulary, where the policy merely never merges them."""
    def never(content):
        keep_digits_together(content)
        content["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True})

    assert "where the policy writes tokens [" in difference(load(never), load(keep_digits_together))


def test_sentencepiece(load, tmp_path):
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=writer, vocab_size=320, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", control_symbols=["<ctl>"], hard_vocab_limit=False, minloglevel=2)
    for name, config in (("one", {}), ("legacy", {"legacy": True})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(writer.getvalue())
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config))
    one, legacy = (load_tokenizer(tmp_path / name) for name in ("one", "legacy"))
    assert difference(one, legacy) is None
    assert difference(one, load()).startswith("token 0 is ")
