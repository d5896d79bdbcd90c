"""Tools and further arguments reach the chat template whatever a row is for; ids and end tokens of every way in."""

import json

import pytest
import tokenizers
from chat_model import write_model

from data.chat import explain
from data.encode import check_ends, encode_prompts, encode_record
from data.pairs import encode_labelled, encode_pair
from data.prompts import read_prompts
from data.reading import Encoder, read_all
from data.records import JsonlSource
from data.sources import WithTemplateKwargs
from data.templates import check_template_kwargs
from data.tokenizer import open_tokenizer
from errors import InputError

TEMPLATE = ("{{ tools[0].name if tools }}{{ '~' + mood if mood }}{% for m in messages %}{{ m.role[0] + m.content }}"
            "{{ '<end>' if m.role == 'assistant' }}{% endfor %}{{ 'a' if add_generation_prompt }}")
TOOLS, KWARGS = [{"name": "f"}], {"mood": "glad"}
ASKED, YES, NO = ({"role": role, "content": content} for role, content in
                  (("user", "hi"), ("assistant", "yes"), ("assistant", "no")))
SHAPES = {
    "messages": {"messages": [ASKED, YES]},
    "completion": {"prompt": [ASKED], "completion": [YES], "label": True},
    "pair": {"prompt": [ASKED], "chosen": [YES], "rejected": [NO]},
    "implied": {"chosen": [ASKED, YES], "rejected": [ASKED, NO]},
    "prompt": {"prompt": [ASKED]},
    "string": {"prompt": "hi"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("template") / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return open_tokenizer(folder)


@pytest.fixture
def source(tmp_path):
    def write(*rows):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return JsonlSource(tmp_path / "rows.jsonl")

    return write


def ways(shape, tokenizer, vocab_size=128):
    """A record's ids, by every function that scripts read it with."""
    record = SHAPES[shape]
    if "chosen" in record:
        return lambda record: [row.tokens.tolist() for row in encode_pair(record, tokenizer, vocab_size=vocab_size)]
    if "label" in record:
        return lambda record: [encode_labelled(record, tokenizer, vocab_size=vocab_size).tokens.tolist()]
    if "messages" in record:
        return lambda record: [encode_record(record, tokenizer, vocab_size=vocab_size, training=each).tokens.tolist()
                               for each in (True, False)]
    return lambda record: [*encode_prompts([record], tokenizer, vocab_size=vocab_size, max_length=99),
                           read_prompts([record], tokenizer, vocab_size=vocab_size, max_length=99)[0].tokens]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", [False, True])
def test_tools_and_kwargs_reach_the_template(shape, text, tokenizer):
    columns = {"tools": TOOLS, "chat_template_kwargs": KWARGS}
    columns = {name: json.dumps(value) if text else value for name, value in columns.items()}
    encode = ways(shape, tokenizer)
    for with_columns, without in zip(encode(SHAPES[shape] | columns), encode(SHAPES[shape]), strict=True):
        assert tokenizer.decode(with_columns) == "f~glad" + tokenizer.decode(without)


@pytest.mark.parametrize("nothing", [None, [], "", "[]", "null"])
def test_no_tools_are_no_tools(nothing, tokenizer):
    encode = ways("messages", tokenizer)
    assert encode(SHAPES["messages"] | {"tools": nothing}) == encode(SHAPES["messages"])


@pytest.mark.parametrize(("column", "line"), [
    ({"tools": "[{"}, "tools: no JSON"), ({"tools": {"name": "f"}}, "not a list of tools"),
    ({"tools": [3]}, "not a list of tools"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs: no JSON"),
    ({"chat_template_kwargs": [1]}, "not a mapping"),
    ({"chat_template_kwargs": {"messages": 1}}, "gets from elsewhere"),
])
def test_columns_that_are_none_are_named(column, line, source, folder):
    with pytest.raises(InputError, match=rf"rows\.jsonl:2: .*{line}"):
        read_all([source(SHAPES["messages"], SHAPES["messages"] | column)], Encoder(folder, 128, 99, form="turns"))


def test_a_flag_is_a_column_that_all_rows_have(source, tokenizer):
    own = SHAPES["string"] | {"chat_template_kwargs": {"mood": "sad"}}
    rows = WithTemplateKwargs(source(SHAPES["string"], own), KWARGS)
    prompts = encode_prompts(rows, tokenizer, vocab_size=128, max_length=99)
    assert [tokenizer.decode(each) for each in prompts] == ["~gladuhia", "~saduhia"]
    check_template_kwargs(KWARGS, tokenizer)
    with pytest.raises(InputError, match="looks at no 'moood'"):
        check_template_kwargs({"moood": 1}, tokenizer)


def test_what_a_template_leaves_out_is_counted_and_told(source, folder, tokenizer, capsys):
    silent = folder.parent / "silent"
    if not silent.exists():
        write_model(silent)
        (silent / "chat_template.jinja").write_text(TEMPLATE.replace("{{ tools[0].name if tools }}", ""))
    _, counts = read_all([source(SHAPES["messages"] | {"tools": TOOLS})], Encoder(silent, 128, 99, form="turns"))
    assert {name: count for name, count in counts.items() if count} == {"tools_dropped": 1}
    assert [line.partition(":")[0] for line in explain(counts)] == ["tools_dropped 1"]
    encode_prompts(source(SHAPES["prompt"] | {"tools": TOOLS}), open_tokenizer(silent), vocab_size=128, max_length=99)
    assert "tools_dropped 1: the chat template leaves out tools" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- ids, BOS and end tokens

STRINGS = {"text": {"text": "yes"}, "strings": {"prompt": "hi", "completion": "yes"},
           "string_pair": {"prompt": "hi", "chosen": "yes", "rejected": "no"}}


def read(folder, source, vocab_size):
    """The rows of a source as the script that takes such rows reads them."""
    record = source[0]
    if set(record) == {"prompt"}:
        return encode_prompts(source, open_tokenizer(folder), vocab_size=vocab_size, max_length=99)
    form = "pair" if record.keys() & {"chosen", "chosen_tokens"} else "labelled" if "label" in record else "turns"
    return read_all([source], Encoder(folder, vocab_size, 99, form=form))[0]


@pytest.mark.parametrize("record", [*SHAPES.values(), *STRINGS.values()])
def test_a_token_beyond_the_embedding_is_named_in_every_way_in(record, folder, tokenizer, source):
    highest = tokenizer.encode("u" if set(record) == {"prompt"} else "y")[0]
    with pytest.raises(InputError, match=rf"rows\.jsonl:1: .*token {highest} .* is beyond the model's embedding"):
        read(folder, source(record, record), highest)


@pytest.mark.parametrize("record", [{"tokens": [5, 130]}, {"chosen_tokens": [5, 130], "rejected_tokens": [5, 6]}])
def test_a_given_id_beyond_the_embedding_is_named(record, source, folder):
    with pytest.raises(InputError, match=r"rows\.jsonl:1: .*ids from 0 to 127.* 130"):
        read(folder, source(record), 128)


@pytest.mark.parametrize("brought", ["yes<end>", "yes<end>\n", "yes<end> <end>"])
def test_an_end_token_that_the_text_brings_is_not_doubled(brought, source, folder, tokenizer):
    """In chats the template's stays; a text is taken as it is."""
    for record, said in (({"text": brought}, brought), ({"prompt": "hi", "completion": brought}, "hi" + brought)):
        [row] = read(folder, source(record), 128)
        assert row.tokens.tolist() == tokenizer.encode(said)
    [chat], [other] = (read(folder, source({"messages": [ASKED, YES | {"content": each}]}), 128)
                       for each in (brought, "yes"))
    assert chat.tokens.tolist() == other.tokens.tolist()
    assert chat.loss_mask.tolist() == other.loss_mask.tolist()


def test_an_end_token_inside_a_text_ends_nothing(source, folder, tokenizer):
    [row] = read(folder, source({"text": "yes<end>no"}), 128)
    assert row.tokens.tolist() == tokenizer.encode("yes<end>no<end>")


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory):
    """A tokenizer that begins a text with <s> by itself."""
    folder = write_model(tmp_path_factory.mktemp("bos") / "model")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["<s>"])
    bos = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "bos_token": "<s>"}))
    return folder


@pytest.mark.parametrize(("record", "expected"), [
    ({"text": "hi"}, "<s>hi<end>"), ({"text": "<s>hi"}, "<s>hi<end>"), ({"text": " <s>hi<end>"}, " <s>hi<end>"),
    ({"prompt": "<s>hi", "completion": "yes<end>"}, "<s>hiyes<end>"),
    ({"prompt": "", "completion": "<s>yes"}, "<s>yes<end>"),
    ({"prompt": "<s>hi", "chosen": "yes", "rejected": "no"}, "<s>hiyes<end>"),
])
def test_a_bos_that_the_text_brings_is_not_doubled(record, expected, with_bos, source):
    assert read(with_bos, source(record), 128)[0].tokens.tolist() == open_tokenizer(with_bos).encode(expected)


def test_a_bos_that_a_message_brings_is_the_templates(with_bos, source):
    for template, expected in (("<s>" + TEMPLATE, "<s>uhiayes<end>"), (TEMPLATE, "u<s>hiayes<end>")):
        (with_bos / "chat_template.jinja").write_text(template)
        tokenizer = open_tokenizer(with_bos)
        row = encode_record({"messages": [ASKED | {"content": "<s>hi"}, YES]}, tokenizer, vocab_size=128, training=True)
        assert row.tokens.tolist() == tokenizer.encode(expected)
    (with_bos / "chat_template.jinja").unlink()


def test_a_bos_beyond_the_embedding_is_named(with_bos, source):
    bos = open_tokenizer(with_bos).bos_id
    with pytest.raises(InputError, match=rf"rows\.jsonl:1: token {bos} \('<s>'\) is beyond the model's embedding"):
        read(with_bos, source({"text": "hi"}), bos)


def test_end_tokens_beyond_the_embedding_are_named(tokenizer):
    check_ends(tokenizer, 2)
    with pytest.raises(InputError, match=r"the end tokens \(ids 1\) are beyond the model's embedding"):
        check_ends(tokenizer, 1)


@pytest.mark.parametrize("template", [None, "<s>" + TEMPLATE])
@pytest.mark.parametrize("prompt", ["hi", "<s>hi"])
def test_prompts_have_one_bos(prompt, template, with_bos):
    tokenizer = open_tokenizer(with_bos)
    tokenizer.chat_template = template
    [tokens] = encode_prompts([{"prompt": prompt}], tokenizer, vocab_size=128, max_length=99)
    expected = "<s>uhia" if template and prompt == "hi" else "<s>hi"
    assert tokens == tokenizer.encode(expected)
