"""Trained tokenizers: every text comes back, indentation is cheap, sizes are exact, and rows give their text."""

import json

import pytest

from data.sentencepiece_tokenizer import LOSSLESS
from data.tokenizer import load_tokenizer
from data.tokenizer_training import LAYOUT_SPACE, TAB, bytes_per_token, record_texts, sample_texts, train_tokenizer
from errors import InputError

CODE = """def add(numbers, start=0):
    total = start
    for number in numbers:
        if number > 10:
            total += number
    return total


class Sum:
    def __init__(self, values):
        self.values = [value for value in values]

\tdef tabs(self):
\t\treturn self.values
"""
TEXTS = [CODE.replace("number", name).replace("Sum", name.title()) for name in ("number", "item", "score", "weight")]
HARD = [
    "", " ", "   leading and  double   ", "\ttab\t\ttabs", "line\n\n\nlines\r\nCRLF\r",
    "emoji 🙂👩‍👩‍👧 é e\u0301 你好。ру", "▁ literal ▁▁ and ▅",
    f"stand-ins {LAYOUT_SPACE}{TAB}", "\0nul \ufeff \u2028 \u00a0", "<0x0A> <unk> <pad>",
    "<s>special</s> in the</s>\n    text", "12345", CODE,
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request):
    return train_tokenizer(TEXTS, 340, request.param)


@pytest.mark.parametrize("text", HARD)
def test_every_text_survives_with_offsets_that_cover_it(trained, text):
    ids, offsets = trained.encode_with_offsets(text)
    assert trained.encode(text) == ids
    assert trained.decode(ids, skip_special_tokens=False) == text
    assert sorted({i for start, end in offsets for i in range(start, end)}) == list(range(len(text)))
    assert trained._first.unk_id() not in ids


def test_texts_survive_without_any_of_their_letters():
    tokenizer = train_tokenizer(["你好世界今天天气很好" * 9], 275)
    for text in HARD:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_a_saved_one_reads_back_the_same(trained, tmp_path):
    trained.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.vocab_size, again.bos_id, again.eos_id, again.eos_ids) == (340, 1, 2, (2,))
    assert (again.bos_token, again.eos_token, again.chat_template) == ("<s>", "</s>", None)
    for text in HARD:
        assert again.encode(text, add_special_tokens=True) == [1, *trained.encode(text)]
        assert again.decode(again.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("indent", ["    ", "\t"])
def test_a_line_end_and_its_indentation_are_few_tokens(indent):
    texts = [text.replace("\t", "    ").replace("    ", indent) for text in TEXTS]
    tokenizer = train_tokenizer(texts, 340)
    pieces = [tokenizer.decode([i]) for i in range(259, 340)]
    assert any("\n" + indent in piece for piece in pieces)
    assert len(tokenizer.encode("\n" + 2 * indent)) <= 2
    assert not any(LAYOUT_SPACE in piece or TAB in piece for piece in pieces)
    assert len(set(pieces)) == len(pieces)


def test_letters_digits_and_punctuation_share_no_piece():
    tokenizer = train_tokenizer(["self.x1 = call(self.x1, 2024)\n    self.x2024 = 2024 ٢٠٢٤\n"] * 50, 290)
    for piece in (tokenizer.decode([i]) for i in range(259, 290)):
        assert piece.strip().isalpha() or not any(map(str.isalpha, piece))
        assert piece in "0123456789٠٢٤" or not any(map(str.isdigit, piece))


def test_marks_stay_with_their_letters():
    tokenizer = train_tokenizer(["हिन्दी भाषा हिन्दी"] * 20, 280)
    assert len(tokenizer.encode("हिन्दी")) == 1


def test_long_lines_are_trained_on():
    tokenizer = train_tokenizer(["abcdefgh" * 50_000 + " " + "=" * 200_000], 290)
    assert bytes_per_token(tokenizer, ["abcdefgh" * 10, "=" * 64]) > 8


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_same_texts_give_the_same_model(model_type):
    one, two = (train_tokenizer(iter(TEXTS), 340, model_type) for _ in range(2))
    assert one._model == two._model


def test_transformers_is_told_to_add_no_space(trained, tmp_path):
    trained.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_prefix_space"] is False


def test_a_literal_space_sign_is_left_to_models_that_are_not_lossless(trained, tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(trained._model)
    assert model.normalizer_spec.name == LOSSLESS
    model.normalizer_spec.name = "identity"
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    other = load_tokenizer(tmp_path)
    assert other.encode("a▁a") == other.encode("a a") == trained.encode("a a") != trained.encode("a▁a")


def test_vocabularies_that_cannot_be_say_which_can():
    for model_type in ("bpe", "unigram"):
        with pytest.raises(InputError, match=r"--vocab-size 9000 is more than .*; give at most (\d+)") as caught:
            train_tokenizer(TEXTS, 9000, model_type)
        most = int(str(caught.value).split("at most ")[1].split(",")[0])
        assert train_tokenizer(TEXTS, most, model_type).vocab_size == most
        for size in (10, 270):
            with pytest.raises(InputError, match=rf"--vocab-size {size} is too small: .* are \d+; give"):
                train_tokenizer(TEXTS, size, model_type)
    for texts in ([], [""], ["▁"]):
        with pytest.raises(InputError, match="hold no text"):
            train_tokenizer(texts, 300)


# ---------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(("record", "expected"), [
    ({"text": "a", "messages": "not read"}, ["a"]),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}], "id": 3}, ["q"]),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["q", "a"]),
    ({"prompt": "p", "completion": "c"}, ["p", "c"]),
    ({"prompt": [{"role": "user", "content": "p"}], "chosen": "c", "rejected": "r"}, ["p", "c", "r"]),
])
def test_a_row_gives_its_strings(record, expected):
    assert record_texts(record) == expected


@pytest.mark.parametrize(("record", "message"), [
    ({"tokens": [1, 2]}, "the row has tokens, and no tokenizer can be trained on tokens"),
    ({"prompt": "p", "chosen_tokens": [1]}, "the row has chosen_tokens"),
    ({"answer": "a"}, r"no known columns among answer"),
    ({"text": 3}, "text must be a string, not int"),
    ({"messages": ["a"]}, "messages must be a string or a list of messages"),
    ({"text": "a\ud800"}, "not valid Unicode"),
])
def test_a_bad_row_is_named(record, message):
    with pytest.raises(InputError, match=f"row 1: .*{message}") as caught:
        sample_texts(Rows([{"text": "good"}, record]), 10**6, seed=0)
    assert "\n" not in str(caught.value)


class Rows(list):
    def place(self, index):
        return f"row {index}"


def test_a_sample_is_whole_rows_drawn_by_seed_up_to_the_bytes():
    source = Rows({"text": f"{i:03d}é"} for i in range(200))  # 5 bytes each
    assert sorted(sample_texts(source, 10**6, seed=0)) == [row["text"] for row in source]
    sample = sample_texts(source, 98, seed=0)
    assert len(sample) == len(set(sample)) == 20
    assert sum(len(text.encode()) for text in sample) == 98
    assert sample[-1] == sample_texts(source, 100, seed=0)[-1][:3]
    assert sample == sample_texts(source, 98, seed=0) != sample_texts(source, 98, seed=1)
    assert any(text > "150" for text in sample)
    assert any(text < "050" for text in sample)
    assert sample_texts(source, 1, seed=0) == [sample[0][:1]]


def test_rows_without_text_are_an_error():
    with pytest.raises(InputError, match="hold no text"):
        sample_texts(Rows([{"text": ""}, {"messages": []}]), 100, seed=0)
