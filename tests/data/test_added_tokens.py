"""Tokens that only the files beside a tokenizer know are tokens, as in transformers."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from data.tokenizer import load_tokenizer
from errors import InputError

SIZE = 300


@pytest.fixture
def folder(tmp_path):
    """A byte-level BPE of SIZE tokens, </s> and "<|word|>" among its pieces."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=["</s>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog and there"] * 9, trainer)
    content = json.loads(backend.to_str())
    vocab = content["model"]["vocab"]
    for number in range(len(vocab), SIZE):
        vocab["<|word|>" if number == SIZE - 1 else f"unused{number}"] = number
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    write(tmp_path, tokenizer_config={"eos_token": "</s>"})
    return tmp_path


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("files", [
    {"tokenizer_config": {"eos_token": "</s>", "additional_special_tokens": ["<|a|>", "<|b|>"]}},
    {"tokenizer_config": {"eos_token": "</s>", "extra_special_tokens": ["<|a|>", {"content": "<|b|>"}]}},
    {"tokenizer_config": {"eos_token": "</s>", "extra_special_tokens": {"a_token": "<|a|>", "b_token": "<|b|>"}}},
    {"special_tokens_map": {"additional_special_tokens": ["<|a|>", {"content": "<|b|>", "lstrip": False}]}},
    {"added_tokens": {"<|b|>": SIZE + 1, "<|a|>": SIZE}},
    {"tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": {
        str(SIZE + 1): {"content": "<|b|>", "special": True}, str(SIZE): {"content": "<|a|>", "special": False}}}},
    {"added_tokens": {"<|a|>": SIZE}, "special_tokens_map": {"additional_special_tokens": ["<|a|>", "<|b|>"]}},
], ids=str)
def test_each_file_is_heard(files, folder, tmp_path):
    assert len(load_tokenizer(folder).encode("<|a|>the<|b|>")) > 5
    write(folder, **files)
    tokenizer = load_tokenizer(folder)
    [the] = tokenizer.encode("the")
    assert tokenizer.encode("<|a|>the<|b|>") == [SIZE, the, SIZE + 1]
    assert tokenizer.vocab_size == SIZE + 2
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode("<|a|>the<|b|>") == [SIZE, the, SIZE + 1]


def test_a_named_token_that_is_plain_text_in_the_tokenizer_is_one_token(folder):
    assert len(load_tokenizer(folder).encode("<|word|>")) > 1
    write(folder, tokenizer_config={"eos_token": "<|word|>", "pad_token": "<|nowhere|>"})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("the<|word|>")[-1:] == [SIZE - 1] == [tokenizer.eos_id]
    assert tokenizer.vocab_size == SIZE  # a padding token that is no token of the model's stays none


def test_spaces_beside_a_token_are_its_own_where_it_says_so(folder):
    token = {"content": "<|a|>", "lstrip": True, "rstrip": True, "special": True}
    write(folder, tokenizer_config={"eos_token": "</s>", "added_tokens_decoder": {str(SIZE): token}})
    [the] = load_tokenizer(folder).encode("the")
    assert load_tokenizer(folder).encode("the <|a|> the") == [the, SIZE, the]


def test_ids_that_do_not_fit_are_named(folder):
    write(folder, added_tokens={"<|a|>": SIZE + 7})
    with pytest.raises(InputError, match=rf"token '<\|a\|>' has id {SIZE + 7} .*, but {SIZE} in it"):
        load_tokenizer(folder)
    write(folder, added_tokens={"</s>": 5})
    with pytest.raises(InputError, match="token '</s>' has id 5"):
        load_tokenizer(folder)


def test_a_token_without_text_is_named(folder):
    write(folder, tokenizer_config={"eos_token": "</s>", "additional_special_tokens": [7]})
    with pytest.raises(InputError, match="special token 7 has no text"):
        load_tokenizer(folder)


def test_what_the_tokenizer_knows_stays_as_it_is(folder):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([AddedToken("<|a|>", special=True, normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    write(folder, special_tokens_map={"additional_special_tokens": ["<|a|>"]})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("<|a|>") == [SIZE]
    assert tokenizer.decode([SIZE]) == ""
