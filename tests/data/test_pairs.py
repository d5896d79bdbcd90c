"""Preference pairs: the same two rows from every shape, the prompt never a target, and bad pairs refused."""

import numpy as np
import pytest

from data.encode import encode_record
from data.pairs import encode_labelled, encode_pair, mismatch
from data.tokenizer import load_tokenizer
from errors import InputError
from models.pretrained import EMBEDDED, locate

END = "<|im_end|>"


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be kind."}
HI, GOOD, BAD = user("Hi"), assistant("Hello there"), assistant("Go away")
FIRST = [user("One?"), assistant("One.")]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(locate(EMBEDDED))


@pytest.fixture
def encode(tokenizer):
    return lambda **record: encode_pair(record, tokenizer, vocab_size=49152)


@pytest.fixture
def texts(tokenizer):
    """(what precedes the first target, all targets) of each row."""

    def split(row):
        first = int(np.argmax(row.loss_mask > 0))
        return tuple(tokenizer.decode(ids.tolist(), skip_special_tokens=False)
                     for ids in (row.tokens[:first], row.tokens[row.loss_mask > 0]))

    return lambda pair: [split(row) for row in pair]


def test_strings_beside_a_prompt_follow_it(encode, tokenizer):
    pair = encode(prompt="The sky is", chosen=" blue.", rejected=" green.")
    for row, completion in zip(pair, (" blue.", " green.")):
        same = encode_record({"prompt": "The sky is", "completion": completion}, tokenizer, vocab_size=49152,
                             training=True)
        assert row.tokens.tolist() == same.tokens.tolist()
        assert row.loss_mask.tolist() == same.loss_mask.tolist()


def test_strings_without_a_prompt_share_it(encode, texts):
    pair = encode(chosen="The sky is blue.", rejected="The sky is green.")
    assert texts(pair) == [("The sky is", f" blue.{END}"), ("The sky is", f" green.{END}")]
    assert texts(encode(chosen="The sky is blue.", rejected="The sky is green.", prompt=None)) == texts(pair)


def test_an_implied_prompt_ends_between_tokens(encode, texts, tokenizer):
    words = ["a", " cat", " car"]
    assert [len(tokenizer.encode(word)) for word in words] == [1, 1, 1]  # "a ca" is common, but ends inside of tokens
    assert texts(encode(chosen="a cat", rejected="a car")) == [("a", f" cat{END}"), ("a", f" car{END}")]


def test_tokens_that_differ_over_the_same_text_are_no_prompt(encode, tokenizer):
    pair = encode(chosen="The therapist", rejected="The therapies")
    common = sum(np.cumprod([one == other for one, other in zip(*(row.tokens for row in pair))]))
    for row in pair:
        assert row.loss_mask.tolist() == [0.0] * common + [1.0] * (len(row.tokens) - common)


def test_nothing_in_common(encode, texts, tokenizer):
    chosen, rejected = encode(prompt="", chosen="Yes sir", rejected="No way")
    assert chosen.loss_mask.tolist() == [0.0] + [1.0] * (len(chosen.tokens) - 1)  # nothing predicts the first
    assert rejected.loss_mask.tolist() == [0.0] + [1.0] * (len(rejected.tokens) - 1)


@pytest.mark.parametrize("more", [" there", f"{END} there"])
def test_an_answer_that_begins_the_other_keeps_its_end_token(encode, texts, more):
    chosen, rejected = texts(encode(chosen="Well hi", rejected=f"Well hi{more}"))
    assert chosen == ("Well hi", END)
    assert rejected[1].endswith(END)


CHOSEN, REJECTED = [HI, GOOD], [HI, BAD]


@pytest.mark.parametrize("record", [
    {"chosen": CHOSEN, "rejected": REJECTED},
    {"prompt": [HI], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [HI], "chosen": CHOSEN, "rejected": REJECTED},
    {"prompt": [HI], "chosen": CHOSEN, "rejected": [BAD]},
    {"prompt": "Hi", "chosen": CHOSEN, "rejected": REJECTED},
    {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": "Hi", "chosen": CHOSEN, "rejected": REJECTED, "messages": CHOSEN, "score_chosen": 3.0},
    {"prompt": [{"from": "human", "value": "Hi"}], "chosen": [{"from": "gpt", "value": "Hello there"}],
     "rejected": [{"from": "gpt", "value": "Go away"}]},
])
def test_one_pair_in_every_shape(record, encode, texts, tokenizer):
    pair = encode(**record)
    for row, chat in zip(pair, (CHOSEN, REJECTED)):
        same = encode_record({"messages": chat}, tokenizer, vocab_size=49152, training=True)
        assert row.tokens.tolist() == same.tokens.tolist()
        assert row.loss_mask.tolist() == same.loss_mask.tolist()
    assert [targets for _, targets in texts(pair)] == [f"Hello there{END}", f"Go away{END}"]


@pytest.mark.parametrize("record", [
    {"chosen": [*FIRST, *CHOSEN], "rejected": [*FIRST, *REJECTED]},
    {"prompt": [*FIRST, HI], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [*FIRST, HI], "chosen": [*FIRST, *CHOSEN], "rejected": [*FIRST, *REJECTED]},
])
def test_earlier_turns_of_the_assistant_are_context(record, encode, texts):
    (context, chosen), (_, rejected) = texts(encode(**record))
    assert "One." in context
    assert (chosen, rejected) == (f"Hello there{END}", f"Go away{END}")


@pytest.mark.parametrize("prompt", ["Hi", [HI], [SYSTEM, HI]])
def test_a_system_message_may_precede_the_prompt(prompt, encode, texts):
    pair = encode(prompt=prompt, chosen=[SYSTEM, *CHOSEN], rejected=[SYSTEM, *REJECTED])
    assert [targets for _, targets in texts(pair)] == [f"Hello there{END}", f"Go away{END}"]
    assert [context.count("Hi") for context, _ in texts(pair)] == [1, 1]


def test_answers_may_be_of_several_turns(encode, tokenizer):
    chosen = [GOOD, user("More"), assistant("Gladly")]
    pair = encode(prompt=[HI], chosen=chosen, rejected=[BAD])
    same = encode_record({"messages": [HI, *chosen]}, tokenizer, vocab_size=49152, training=True)
    assert pair.chosen.loss_mask.tolist() == same.loss_mask.tolist()


def test_an_answer_that_comes_back_to_the_prompt_follows_it(encode, texts):
    pair = encode(prompt=[HI], chosen=[assistant("Welcome"), HI, GOOD], rejected=[BAD])
    assert texts(pair)[0][1] == f"Welcome{END}Hello there{END}"
    assert len(texts(pair)[0][0]) == len(texts(pair)[1][0])


def test_pretokenised_pairs_pass_through():
    record = {"chosen_tokens": [5, 6, 7], "rejected_tokens": [5, 8], "chosen_loss_mask": [0, 0, 0.5], "chosen": "other"}
    chosen, rejected = encode_pair(record, None, vocab_size=9)
    assert (chosen.tokens.tolist(), chosen.loss_mask.tolist()) == ([5, 6, 7], [0.0, 0.0, 0.5])
    assert (rejected.tokens.tolist(), rejected.loss_mask.tolist()) == ([5, 8], [0.0, 1.0])
    assert (chosen.tokens.dtype, chosen.loss_mask.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize(("record", "message"), [
    ({"chosen": "a b", "rejected": "a b"}, "are the same"),
    ({"chosen": CHOSEN, "rejected": CHOSEN}, "are the same"),
    ({"prompt": "Hi", "chosen": CHOSEN, "rejected": [GOOD]}, "are the same"),
    ({"chosen_tokens": [1, 2], "rejected_tokens": [1, 2]}, "are the same"),
    ({"chosen_tokens": [1, 2], "rejected_tokens": [1]}, "rejected: no token of the row is a target"),
    ({"chosen_tokens": [], "rejected_tokens": [1, 2]}, "chosen: the row has no tokens"),
    ({"chosen_tokens": [1, 49152], "rejected_tokens": [1]}, "chosen: tokens must be a list of ids"),
    ({"chosen_tokens": [1, 2], "rejected_tokens": [1, 3], "rejected_loss_mask": [1]}, "rejected: loss_mask must hold"),
    ({"chosen_tokens": [1, 2]}, "no known columns"),
    ({"chosen": "a", "prompt": "b"}, r"no known columns among chosen, prompt;"),
    ({"chosen": "a", "rejected": [BAD]}, "both be strings"),
    ({"chosen": 1, "rejected": 2}, "both be strings"),
    ({"prompt": "a", "chosen": " ", "rejected": "b"}, "chosen: the answer is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected: the answer is empty"),
    ({"chosen": "Yes sir", "rejected": "No way"}, "answer different prompts"),
    ({"chosen": CHOSEN, "rejected": [user("Ho"), BAD]}, r"answer different prompts, .*\(at message 0\)"),
    ({"chosen": [SYSTEM, *CHOSEN], "rejected": REJECTED}, "answer different prompts"),
    ({"chosen_tokens": [1, 2, 3], "rejected_tokens": [2, 2, 4], "chosen_loss_mask": [0, 0, 1],
      "rejected_loss_mask": [0, 0, 1]}, "answer different prompts"),
    ({"chosen": "a", "rejected": "b", "prompt": [HI]}, "both be strings"),
    ({"chosen": "a", "rejected": "b", "prompt": 3}, "both be strings"),
    ({"chosen": [HI], "rejected": REJECTED}, "chosen: no assistant turn"),
    ({"chosen": CHOSEN, "rejected": [*CHOSEN, BAD]}, "chosen: no assistant turn in the conversation from message 2"),
    ({"prompt": [HI], "chosen": CHOSEN, "rejected": [HI]}, "rejected: no assistant turn"),
    ({"prompt": [HI], "chosen": [user("Ho"), GOOD], "rejected": REJECTED}, "chosen: begins neither with the prompt"),
    ({"prompt": "Ho", "chosen": [GOOD], "rejected": REJECTED}, "rejected: begins neither with the prompt"),
    ({"prompt": [HI], "chosen": [GOOD], "rejected": []}, "rejected: begins neither with the prompt"),
    ({"prompt": [HI], "chosen": [GOOD], "rejected": ["Go"]}, "rejected: begins neither with the prompt"),
    ({"prompt": ["Hi"], "chosen": [GOOD], "rejected": [BAD]}, "chosen: message 0 is a str"),
    ({"chosen": [HI, assistant(" ")], "rejected": REJECTED}, "chosen: message 1: the assistant's content is empty"),
])
def test_bad_pairs(record, message, encode):
    with pytest.raises(InputError, match=message):
        encode(**record)


def test_without_a_tokenizer_only_tokens_are_taken():
    with pytest.raises(InputError, match="the model has no tokenizer, so rows must have chosen_tokens"):
        encode_pair({"chosen": "a", "rejected": "b"}, None, vocab_size=9)


@pytest.mark.parametrize("label", [True, False, 1, 0, 1.0, 0.0, "true", "false", "True", " FALSE ", "1", "0",
                                   np.True_, np.float32(0)])
def test_answers_with_a_label(label, tokenizer):
    row = encode_labelled({"prompt": [HI], "completion": [GOOD], "label": label}, tokenizer, vocab_size=49152)
    same = encode_record({"messages": CHOSEN}, tokenizer, vocab_size=49152, training=True)
    assert row.tokens.tolist() == same.tokens.tolist()
    assert row.extra["label"] == (str(label).strip().lower() in ("true", "1", "1.0"))


@pytest.mark.parametrize(("record", "message"), [
    ({"prompt": "a", "completion": "b"}, r"no column label among completion, prompt"),
    ({"prompt": "a", "completion": "b", "label": "yes"}, "label is yes but must be true or false"),
    ({"prompt": "a", "completion": "b", "label": 2}, "label is 2 but must be true or false, or 1 or 0"),
    ({"prompt": "a", "completion": "b", "label": -1}, "label is -1 but must be true or false"),
    ({"prompt": "a", "completion": "b", "label": float("nan")}, "label is nan but must be true or false"),
    ({"prompt": "a", "completion": "b", "label": [1]}, "label is a list but must be true or false"),
    ({"prompt": "a", "completion": " ", "label": True}, "the completion is empty"),
])
def test_bad_labels(record, message, tokenizer):
    with pytest.raises(InputError, match=message):
        encode_labelled(record, tokenizer, vocab_size=49152)


def test_a_mismatched_row_is_the_prompt_with_another_answer(tokenizer):
    own, other = (encode_labelled({"prompt": prompt, "completion": completion, "label": True}, tokenizer,
                                  vocab_size=49152) for prompt, completion in (("One two", " three"), ("A b", " c d")))
    made = mismatch(own, other)
    assert tokenizer.decode(made.tokens, skip_special_tokens=False) == f"One two c d{END}"
    assert tokenizer.decode(made.tokens[made.loss_mask > 0], skip_special_tokens=False) == f" c d{END}"
