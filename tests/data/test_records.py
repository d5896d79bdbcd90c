"""JSON lines by random access, and the shapes that records come in."""

import gzip
import hashlib
import json
import pickle

import pytest

from data import records
from data.encode import encode_prompts, encode_record, encode_text
from data.reading import fingerprint
from data.records import JsonlSource, normalise
from data.sources import Concatenated, Renamed
from data.tokenizer import load_tokenizer
from errors import InputError
from models.pretrained import EMBEDDED, locate

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(locate(EMBEDDED))


@pytest.fixture
def write(tmp_path):
    def write(text, name="rows.jsonl"):
        content = text.encode() if isinstance(text, str) else text
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return tmp_path / name

    return write


LINES = '\n{"i": 0}\n  \t\n\r\n{"i": 1}\r\n {"i": 2, "t": "a\u2028b\x85c"}\n\n{"i": 3}'


@pytest.mark.parametrize("scan_bytes", [1, 7, 1 << 24])  # lines that end in, at and across what is scanned at once
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_rows_and_places(write, monkeypatch, scan_bytes, name, end):
    monkeypatch.setattr(records, "SCAN_BYTES", scan_bytes)
    source = JsonlSource(write(LINES + end, name))
    assert [row["i"] for row in source] == [0, 1, 2, 3]
    assert source[2]["t"] == "a\u2028b\x85c"
    assert [source.place(i).rpartition(":")[2] for i in range(4)] == ["2", "5", "6", "8"]
    assert source.place(0).rpartition(":")[0].endswith(name)


def test_indices_are_those_of_a_sequence(write):
    source = JsonlSource(write(LINES))
    assert source[-1] == {"i": 3}
    assert source.place(-1) == source.place(3)
    for beyond in (4, -5):
        with pytest.raises(IndexError):
            source[beyond]
        with pytest.raises(IndexError):
            source.place(beyond)


def test_a_bad_row_is_found_when_it_is_reached(write):
    lines = [json.dumps({"i": i}) for i in range(50_000)]
    lines[30_000:30_003] = ["[1, 2]", '{"i": ', "[" * 200_000]
    source = JsonlSource(write("\n".join(lines)))
    assert (source[29_999], source[30_003]) == ({"i": 29_999}, {"i": 30_003})
    with pytest.raises(InputError, match=r"rows\.jsonl:30001: a JSON object was expected, not list"):
        source[30_000]
    for index in (30_001, 30_002):
        with pytest.raises(InputError, match=rf"rows\.jsonl:{index + 1}: malformed JSON"):
            source[index]


def test_no_utf8_is_malformed(write):
    with pytest.raises(InputError, match=r"rows\.jsonl:1: malformed JSON"):
        JsonlSource(write(b'{"t": "\xff\xfe"}'))[0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_other_encodings_are_named(write, encoding, name):
    where = encoding.replace("-le", "le").replace("-be", "be").upper()
    with pytest.raises(InputError, match=rf"rows\.jsonl\S*: is written in {where}, .* iconv -f {where} -t UTF-8"):
        JsonlSource(write('{"text": "x"}\r\n{"text": "y"}\r\n'.encode(encoding), name))


def test_a_byte_order_mark_of_utf8_is_no_part_of_the_row(write):
    assert JsonlSource(write('{"text": "x"}\n'.encode("utf-8-sig")))[0] == {"text": "x"}


def test_null_is_absent(write, tmp_path):
    """As in Parquet, where every row has every key; but a schema's null is a value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data.arrow_source import open_parquet

    message = {"role": "user", "content": "x", "name": None, "tool_calls": None}
    rows = [{"text": None, "messages": [message], "label": None, "more": {"a": [{"b": None, "c": 1}]}},
            {"text": "y", "messages": None, "label": False, "more": None}]
    absent = [{"messages": [{"role": "user", "content": "x"}], "more": {"a": [{"c": 1}]}},
              {"text": "y", "label": False}]
    assert list(JsonlSource(write("".join(json.dumps(row) + "\n" for row in rows)))) == absent
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert list(open_parquet([tmp_path / "rows.parquet"])) == absent
    tools = [{"function": {"name": "f", "parameters": {"unit": {"default": None}}}}]
    assert JsonlSource(write(json.dumps({"tools": tools, "text": "x"})))[0] == {"tools": tools, "text": "x"}
    assert JsonlSource(write(json.dumps({"tools": None, "text": "x"})))[0] == {"text": "x"}


def test_a_row_costs_eight_bytes(write):
    source = JsonlSource(write('{"i": 0}\n' * 1000))
    assert source._starts.nbytes == 8 * len(source)
    assert not isinstance(source._data, bytes)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_pickle_opens_the_file_again(write, name):
    source = JsonlSource(write('{"i": 0}\n' * 10_000, name))
    assert len(pickle.dumps(source)) < 1000
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert (len(again), again[7], again.place(7)) == (len(source), source[7], source.place(7))


def test_a_file_that_changed_under_its_pickle_is_refused(write):
    state = pickle.dumps(JsonlSource(write('{"i": 0}\n' * 3)))
    write('{"i": 0}\n' * 4)
    with pytest.raises(InputError, match="has changed since it was opened"):
        pickle.loads(state)  # noqa: S301


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:20] + b"\0" * 9 + data[29:],
                                    lambda data: data[:5], lambda data: b'{"i": 0}\n'])
def test_damaged_gzip_names_the_file(write, damage):
    path = write("".join(json.dumps({"i": i}) + "\n" for i in range(1000)), "rows.jsonl.gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz: truncated or corrupt gzip \(.+\); fetch"):
        JsonlSource(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize("text", ["", "\n", " \n\t\n"])
def test_empty_files(write, name, text):
    with pytest.raises(InputError, match=r"rows\.jsonl.*: holds no rows"):
        JsonlSource(write(text, name))


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path / "none.jsonl.gz", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            JsonlSource(path)


def test_sharegpt_becomes_messages():
    system = {"from": "system", "value": "Be kind."}
    turns = [system, *SHAREGPT, {"from": "tool", "value": "3"}, {"from": "assistant", "value": "Three", "weight": 1}]
    assert normalise({"conversations": turns, "id": 7}) == {
        "messages": [{"role": "system", "content": "Be kind."}, *CHAT, {"role": "tool", "content": "3"},
                     {"role": "assistant", "content": "Three", "weight": 1}],
        "id": 7,
    }
    assert normalise({"prompt": SHAREGPT[:1], "chosen": SHAREGPT[1:]}) == {"prompt": CHAT[:1], "chosen": CHAT[1:]}


@pytest.mark.parametrize("record", [{"messages": CHAT}, {"text": "a"}, {"messages": "no list"},
                                    {"messages": [3, {"from": "gpt"}]},
                                    {"prompt": CHAT[:1], "answer": [{"from": "Rome", "value": 3}]},
                                    {"messages": CHAT, "conversations": SHAREGPT}])
def test_other_records_stay_as_they_are(record):
    assert normalise(record) == record


def test_messages_may_be_json_text(tokenizer):
    text, turns = json.dumps(CHAT), json.dumps([{"from": "human", "value": "Hi", "weight": None}], indent=1)
    assert normalise({"messages": text, "prompt": f" {text}", "answer": text}) == {
        "messages": CHAT, "prompt": CHAT, "answer": text}
    assert normalise({"conversations": turns}) == {"messages": [{"role": "user", "content": "Hi"}]}
    both = [{"prompt": CHAT[:1], "completion": CHAT[1]["content"]},
            {"prompt": json.dumps(CHAT[:1]), "completion": CHAT[1]["content"]}, {"messages": text}]
    rows = [encode_record(each, tokenizer, vocab_size=49152, training=True) for each in both]
    expected = encode_record({"messages": CHAT}, tokenizer, vocab_size=49152, training=True)
    assert all(row.tokens.tolist() == expected.tokens.tolist() for row in rows)
    assert all(row.loss_mask.tolist() == expected.loss_mask.tolist() for row in rows)


@pytest.mark.parametrize("text", ["[1, 2]", "[]", '[{"a": 1}]', '[{"role": 3}]', "[1] see above", '{"role": "user"}',
                                  "[" * 100_000, '[{"role": "user", "content": "cut'])
def test_other_text_is_text(text):
    assert normalise({"prompt": text, "messages": text}) == {"prompt": text, "messages": text}


def test_what_a_model_said_stays_text():
    record = {"prompt": "As JSON?", "completion": json.dumps(CHAT), "chosen": json.dumps(CHAT)}
    assert normalise(record) == record


@pytest.mark.parametrize("speaker", ["bard", None, ["gpt"]])
def test_unknown_speakers_are_named(speaker):
    with pytest.raises(InputError, match="message 1 is from .*, not from one of human"):
        normalise({"conversations": [*SHAREGPT[:1], {"from": speaker, "value": "Hello"}]})


@pytest.mark.parametrize("record", [
    {"conversations": SHAREGPT},
    {"conversations": CHAT},
    {"prompt": SHAREGPT[:1], "completion": SHAREGPT[1:]},
    {"prompt": CHAT[:1], "completion": CHAT[1:]},
])
def test_one_chat_in_every_shape_is_one_row(record, tokenizer):
    expected = encode_record({"messages": CHAT}, tokenizer, vocab_size=49152, training=True)
    row = encode_record(record, tokenizer, vocab_size=49152, training=True)
    assert row.tokens.tolist() == expected.tokens.tolist()
    assert row.loss_mask.tolist() == expected.loss_mask.tolist()


def test_tokens_go_before_any_chat_beside_them(tokenizer):
    record = {"tokens": [5, 6], "conversations": [{"from": "bard", "value": ""}]}
    assert encode_record(record, tokenizer, vocab_size=49152, training=True).tokens.tolist() == [5, 6]


def test_prompts_of_sharegpt_chats(tokenizer):
    one, two = encode_prompts([{"conversations": SHAREGPT}, {"messages": CHAT}], tokenizer, vocab_size=49152,
                              max_length=64)
    assert one == two


@pytest.mark.parametrize("text", ["", "The sky is blue.", "  é\u2028 日本語 <|im_start|> 12345\n"])
@pytest.mark.parametrize("training", [True, False])
def test_a_text_needs_no_offsets(text, training, tokenizer, monkeypatch):
    by_offsets = tokenizer.encode_with_offsets(text)[0] + [tokenizer.eos_id] * training
    monkeypatch.setattr(tokenizer, "encode_with_offsets", None)
    assert encode_text("", text, tokenizer, training)[:2] == (by_offsets, [1.0] * len(by_offsets))


def test_run_directories_know_rows_by_what_is_written_nulls_and_all(write):
    """Those from before null was absent go on."""
    row = {"text": "Hi", "meta": None, "more": {"of": None}}
    source = JsonlSource(write(json.dumps(row) + "\n"))
    digest = hashlib.sha256(b"1\n" + json.dumps(row, sort_keys=True).encode()).hexdigest()
    assert fingerprint([source]) == fingerprint([Concatenated([source])]) == digest
    assert fingerprint([Renamed(source, {"note": "meta"})]) != digest


def test_a_renamed_column_of_null_is_absent(write):
    source = Renamed(JsonlSource(write('{"text": "Hi", "functions": null}\n')), {"tools": "functions"})
    assert source[0] == {"text": "Hi"}
    with pytest.raises(InputError, match="no column 'functs'"):
        Renamed(source, {"tools": "functs"})[0]
