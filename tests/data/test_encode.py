"""Records to rows: targets, end tokens, and every bad row an error that names file and line."""

import json

import numpy as np
import pytest

from data.encode import encode_prompts, encode_record
from data.reading import Encoder, read_all
from data.records import JsonlSource
from data.tokenizer import load_tokenizer
from errors import InputError
from models.pretrained import EMBEDDED, locate

ENCODER = Encoder(locate(EMBEDDED), 49152, 64)
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(locate(EMBEDDED))


@pytest.fixture
def encode(tokenizer):
    return lambda record, training=True: encode_record(record, tokenizer, vocab_size=49152, training=training)


@pytest.fixture
def source(tmp_path):
    def write(*lines):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return JsonlSource(path)

    return write


def targets(row, tokenizer):
    return tokenizer.decode(row.tokens[row.loss_mask > 0].tolist(), skip_special_tokens=False)


def test_text_counts_from_its_second_token_to_its_end(encode, tokenizer):
    row = encode({"text": "The sky is blue."})
    assert row.tokens.tolist() == [*tokenizer.encode("The sky is blue."), tokenizer.eos_id]
    assert row.loss_mask.tolist() == [0.0] + [1.0] * (len(row.tokens) - 1)
    assert len(encode({"text": "The sky is blue."}, training=False).tokens) == len(row.tokens) - 1


def test_prompt_and_completion_are_encoded_as_one(encode, tokenizer):
    row = encode({"prompt": "The sky is", "completion": " blue."})
    assert row.tokens.tolist()[:-1] == tokenizer.encode("The sky is blue.")
    assert targets(row, tokenizer) == " blue.<|im_end|>"


def test_a_token_across_the_border_belongs_to_the_prompt(encode, tokenizer):
    row = encode({"prompt": "The sky is bl", "completion": "ue."})
    assert row.tokens.tolist()[:-1] == tokenizer.encode("The sky is blue.")
    assert targets(row, tokenizer) == ".<|im_end|>"


def test_chats_count_the_assistant_and_its_end_token(encode, tokenizer):
    assert targets(encode({"messages": CHAT}), tokenizer) == "Hello<|im_end|>"


def test_only_the_completions_turns_count(encode, tokenizer):
    more = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well"}]
    row = encode({"prompt": CHAT + more[:1], "completion": more[1:]})
    assert row.tokens.tolist() == encode({"messages": CHAT + more}).tokens.tolist()
    assert targets(row, tokenizer) == "Well<|im_end|>"


def test_pretokenised_rows_pass_through(encode):
    row = encode({"tokens": [5, 6, 7], "loss_mask": [1, 0, 0.5]})
    assert row.tokens.tolist() == [5, 6, 7]
    assert row.loss_mask.tolist() == [0.0, 0.0, 0.5]  # nothing predicts the first token
    assert encode({"tokens": [5, 6, 7]}).loss_mask.tolist() == [0.0, 1.0, 1.0]
    assert encode({"tokens": [5, 6]}).tokens.dtype == np.int32


@pytest.mark.parametrize(("record", "message"), [
    ({"question": "?"}, r"no known columns among question"),
    ({"messages": CHAT[:1]}, "assistant"),
    ({"messages": "Hi"}, "messages are a str"),
    ({"text": 3}, "text must be a string, not int"),
    ({"prompt": "a", "completion": CHAT}, "both be strings or both be lists"),
    ({"tokens": [1, 49152]}, "ids from 0 to 49151"),
    ({"tokens": [1, True]}, "ids from 0 to 49151"),
    ({"tokens": [1, 2], "loss_mask": [1]}, "one number from 0 on for each of the 2 tokens"),
    ({"tokens": [1, 2], "loss_mask": 5}, "one number from 0 on"),
    ({"tokens": [1, 2], "loss_mask": [0, float("nan")]}, "one number from 0 on"),
    ({"tokens": [1, 2], "loss_mask": [1, 0]}, "no token of the row is a target"),
    ({"tokens": []}, "the row has no tokens"),
])
def test_bad_rows_name_file_and_line(record, message, source, tokenizer):
    rows = source({"text": "fine, this one"}, "", record)
    with pytest.raises(InputError, match=rf"rows\.jsonl:3: .*{message}"):
        read_all([rows], ENCODER)


def test_malformed_json_names_the_line(source, tokenizer):
    rows = source({"text": "fine, this one"}, '{"text": "cut')
    with pytest.raises(InputError, match=r"rows\.jsonl:2: malformed JSON"):
        read_all([rows], ENCODER)
    with pytest.raises(InputError, match=r"rows\.jsonl:1: a JSON object was expected, not list"):
        read_all([source("[1, 2]")], ENCODER)


def test_rows_over_length_are_named(source, tokenizer):
    rows = source({"tokens": [1] * 64}, {"tokens": [1] * 65})
    with pytest.raises(InputError, match=r"rows\.jsonl:2: 65 tokens are longer than the 64 allowed"):
        read_all([rows], ENCODER)


def test_lines_end_at_newlines_only(source):
    assert len(source(json.dumps({"text": "one\u2028row"}, ensure_ascii=False), "")) == 1


def test_empty_and_missing_files(source, tmp_path):
    with pytest.raises(InputError, match="holds no rows"):
        source("", " ")
    with pytest.raises(InputError, match="cannot be read"):
        JsonlSource(tmp_path / "none.jsonl")


def test_prompts(tokenizer):
    rows = [{"prompt": "Hi"}, {"prompt": CHAT[:1]}, {"messages": CHAT}, {"tokens": [4, 5]}]
    one, two, three, four = encode_prompts(rows, tokenizer, vocab_size=49152, max_length=64)
    assert one == two == three
    assert tokenizer.decode(one, skip_special_tokens=False).endswith("<|im_start|>assistant\n")
    assert four == [4, 5]


def test_without_a_tokenizer_only_tokens_are_taken(source):
    assert len(read_all([source({"tokens": [1, 2]})], Encoder(None, 9, 9))[0]) == 1
    with pytest.raises(InputError, match="the model has no tokenizer"):
        read_all([source({"text": "Hi"})], Encoder(None, 9, 9))


def test_scoring_asks_for_no_target(encode):
    assert encode({"tokens": [5]}, training=False).loss_mask.tolist() == [0.0]
    assert not encode({"tokens": [5, 6], "loss_mask": [0, 0]}, training=False).loss_mask.any()


def test_a_completion_beside_a_prompt_changes_nothing(tokenizer):
    prompts = [{"prompt": "The sky is"}, {"prompt": "The sky is", "completion": " blue"}]
    one, two = encode_prompts(prompts, tokenizer, vocab_size=49152, max_length=64)
    assert one == two
    assert tokenizer.decode(one, skip_special_tokens=False).endswith("<|im_start|>assistant\n")


def test_a_text_that_a_template_was_applied_to_is_continued_as_it_is(tokenizer):
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    [prompt] = encode_prompts([{"prompt": text}], tokenizer, vocab_size=49152, max_length=64)
    assert prompt == tokenizer.encode(text)
