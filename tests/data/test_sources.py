"""Sources by name: what each kind reads, where its rows stand, and what is wrong with those that cannot be read."""

import gzip
import json
import math
import pickle
import sys
import types

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from data.sources import DataSource, WithTemplateKwargs, open_source, parse_source
from errors import InputError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "name": "Ada"}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def write_jsonl(path, numbers):
    text = "".join(json.dumps({"i": i}) + "\n" for i in numbers).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def write_parquet(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


def numbers(first, last):
    return [{"i": i} for i in range(first, last)]


def open_named(text, **columns):
    return open_source(DataSource(text, columns=columns))


@pytest.mark.parametrize(("text", "source", "weight"), [
    ("a.jsonl", "a.jsonl", 1.0),
    ("a.jsonl@0.7", "a.jsonl", 0.7),
    ("hf:owner/name:train[:10]@2", "hf:owner/name:train[:10]", 2.0),
    ("runs@2/a.jsonl", "runs@2/a.jsonl", 1.0),
    ("runs@2/a.jsonl@3", "runs@2/a.jsonl", 3.0),
    ("7", "7", 1.0),
])
def test_weights_follow_the_last_at(text, source, weight):
    assert parse_source(text) == DataSource(source, weight)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "1e999"])
def test_weights_are_above_zero(weight):
    with pytest.raises(InputError, match=r"data a\.jsonl: weight .* is no number above 0"):
        parse_source(f"a.jsonl@{weight}")


@pytest.mark.parametrize("entry", [{"weight": 0}, {"weight": math.inf}, {"weight": "1"}, {"weight": True},
                                   {"columns": ["a"]}, {"columns": {"a": 1}}])
def test_entries_of_a_recipe_are_checked(entry):
    with pytest.raises(InputError, match=r"data a\.jsonl: "):
        DataSource("a.jsonl", **entry)


@pytest.mark.parametrize("text", ["", "@0.5"])
def test_no_name(text):
    with pytest.raises(InputError, match="names no source"):
        parse_source(text)


@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "rows", "s3:bucket/rows", "rows.jsonl@high"])
def test_unknown_kinds(name):
    with pytest.raises(InputError, match=rf"data {name}: of no known kind; give FILE\.jsonl, .*@WEIGHT"):
        open_source(parse_source(name))


def test_globs_go_through_files_in_order(folder):
    write_jsonl(folder / "b.jsonl", [3])
    write_jsonl(folder / "a.jsonl", [0, 1, 2])
    write_jsonl(folder / "c.jsonl.gz", [9])
    source = open_named("*.jsonl")
    assert list(source) == numbers(0, 4)
    assert [source.place(i) for i in (0, 2, 3, -1)] == ["a.jsonl:1", "a.jsonl:3", "b.jsonl:1", "b.jsonl:1"]
    assert list(open_named("*.jsonl.gz")) == [{"i": 9}]
    with pytest.raises(IndexError):
        source[4]


def test_globs_go_through_folders(folder):
    for i, name in enumerate(["x", "y"]):
        (folder / name / "deep").mkdir(parents=True)
        write_jsonl(folder / name / "deep" / "a.jsonl", [i])
    assert list(open_named("**/*.jsonl")) == numbers(0, 2)


@pytest.mark.parametrize("pattern", ["none*.jsonl", "none?.jsonl.gz", "[n]one.parquet"])
def test_a_glob_without_a_match_names_itself(pattern):
    with pytest.raises(InputError) as error:
        open_named(pattern)
    assert str(error.value).startswith(f"data {pattern}: matches no file")


def test_a_file_may_be_called_like_a_pattern(folder):
    write_jsonl(folder / "a[1].jsonl", [7])
    write_parquet(folder / "a[1].parquet", numbers(0, 3))
    assert list(open_named("a[1].jsonl")) == [{"i": 7}]
    assert list(open_named("a[1].parquet")) == numbers(0, 3)
    assert list(open_named("*.parquet")) == numbers(0, 3)


@pytest.mark.parametrize("name", ["none.jsonl", "none.jsonl.gz", "none.parquet"])
def test_missing_files_are_named(name):
    with pytest.raises(InputError, match=f"data {name}: .*No such file"):
        open_named(name)


def test_columns_take_our_names(folder):
    (folder / "a.jsonl").write_text('{"q": "?", "a": "!", "prompt": "theirs", "level": 3}\n{"q": "?"}\n')
    source = open_named("a.jsonl", prompt="q", completion="a")
    assert source[0] == {"prompt": "?", "completion": "!", "level": 3}
    with pytest.raises(InputError, match=r"a\.jsonl:2: no column 'a' to take 'completion' from, only q;"):
        source[1]
    assert open_named("a.jsonl", a="q", q="a")[0]["a"] == "?"
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert (again[0], again.place(1), len(again)) == (source[0], "a.jsonl:2", 2)


def test_tfds_is_handed_on(monkeypatch):
    module = types.SimpleNamespace(open_tfds=lambda spec: [{"spec": spec}])
    monkeypatch.setitem(sys.modules, "data.tfds_source", module)
    assert open_named("tfds:gsm8k/main:test")[0] == {"spec": "gsm8k/main:test"}
    module.open_tfds = lambda spec: []
    with pytest.raises(InputError, match="data tfds:gsm8k: holds no rows"):
        open_named("tfds:gsm8k")


def test_parquet_rows_and_places(folder):
    write_parquet(folder / "b.parquet", numbers(3, 5))
    write_parquet(folder / "a.parquet", numbers(0, 3), row_group_size=2)
    source = open_named("*.parquet")
    assert list(source) == numbers(0, 5)
    assert type(source[0]["i"]) is int
    assert [source.place(i) for i in (0, 2, 3, -1)] == ["a.parquet row 0", "a.parquet row 2", "b.parquet row 0",
                                                        "b.parquet row 1"]


def test_what_arrow_filled_in_is_dropped(folder):
    tool = {"role": "assistant", "content": "", "tool": {"name": "sum", "unit": None}}
    table = {"messages": [CHAT, None, [tool]], "text": [None, "only", None], "scores": [None, None, [1, None]]}
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "a.parquet")
    del tool["tool"]["unit"]
    assert list(open_named("a.parquet")) == [{"messages": CHAT}, {"text": "only"},
                                             {"messages": [tool], "scores": [1, None]}]


def test_a_rewritten_file_is_read_anew(folder):
    write_parquet(folder / "a.parquet", numbers(0, 3))
    assert len(open_named("a.parquet")) == 3
    write_parquet(folder / "a.parquet", numbers(5, 9))
    assert list(open_named("a.parquet")) == numbers(5, 9)


def test_a_pickle_of_arrow_rows_is_small(folder):
    write_parquet(folder / "a.parquet", [{"text": "word " * 50} for _ in range(2000)])
    source = open_named("a.parquet")
    state = pickle.dumps(source)
    assert len(state) < 20_000
    again = pickle.loads(state)  # noqa: S301
    assert (len(again), again[1999], again.place(1999)) == (2000, source[1999], "a.parquet row 1999")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-20])


def scribble(path):
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 60 + content[64:])


@pytest.mark.parametrize("damage", [cut_off, scribble, lambda path: path.write_bytes(b"")])
def test_a_corrupt_shard_is_named(folder, damage, capfd):
    for name in ("a", "b", "c"):
        write_parquet(folder / f"{name}.parquet", [{"t": f"{i}" * 40} for i in range(500)], use_dictionary=False,
                      compression="none")
    damage(folder / "b.parquet")
    with pytest.raises(InputError, match=r"^data b\.parquet: .*; fetch or write it again$"):
        open_named("*.parquet")
    assert capfd.readouterr().err == ""


def test_shards_need_not_have_the_same_columns_and_types(folder):
    shards = {"a": numbers(0, 2), "b": [{"j": 1}], "c": [{"j": 2}], "d": [{"i": {"deep": [1]}}], "e": [{"i": "word"}],
              "f": [{"j": None, "i": 3}], "g": [{"i": 4, "j": 5}], "h": [{"i": 2.5}]}
    for name, rows in shards.items():
        write_parquet(folder / f"{name}.parquet", rows)
    source = open_named("*.parquet")
    expected = [{key: value for key, value in row.items() if value is not None}
                for rows in shards.values() for row in rows]
    assert list(source) == expected
    assert [source.place(i) for i in (0, 2, 3, 4, -1)] == ["a.parquet row 0", "b.parquet row 0", "c.parquet row 0",
                                                          "d.parquet row 0", "h.parquet row 0"]
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert list(again) == expected


def test_empty_parquet(folder):
    pyarrow.parquet.write_table(pyarrow.table({"i": pyarrow.array([], pyarrow.int64())}), folder / "a.parquet")
    with pytest.raises(InputError, match=r"data a\.parquet: holds no rows"):
        open_named("a.parquet")


@pytest.fixture
def hub(folder):
    """A data set that `datasets` finds in the current folder under the name it would have on the Hub."""
    write_parquet(folder / "owner" / "name" / "train.parquet", numbers(0, 6))
    write_parquet(folder / "owner" / "name" / "test.parquet", numbers(6, 8))


@pytest.mark.usefixtures("hub")
def test_splits_of_a_data_set():
    assert list(open_named("hf:owner/name")) == numbers(0, 6)
    assert list(open_named("hf:owner/name:test")) == numbers(6, 8)
    source = open_source(parse_source("hf:owner/name/default:train[2:4]@0.5"))
    assert list(source) == numbers(2, 4)
    assert source.place(1) == "hf:owner/name/default:train[2:4] row 1"
    assert open_named("hf:owner/name:test").place(0) == "hf:owner/name:test row 0"
    assert open_named("hf:owner/name").place(5) == "hf:owner/name:train row 5"
    assert pickle.loads(pickle.dumps(source))[1] == {"i": 3}  # noqa: S301


@pytest.mark.parametrize(("name", "message"), [
    ("hf:owner/name:dev", r"Unknown split .dev.*\['train', 'test'\]"),
    ("hf:owner/name/main", r"'main' not found.*default"),
    ("hf:owner/name:train[:0]", "no data"),
    ("hf:", "no data set's name"),
    ("hf:owner//main", "no data set's name"),
    ("hf:a/b/c/d", "no data set's name"),
    ("hf:owner/bad name", "Repo id"),
])
@pytest.mark.usefixtures("hub")
def test_data_sets_that_cannot_be_had(name, message):
    with pytest.raises(InputError, match=message) as error:
        open_named(name)
    assert str(error.value).startswith(f"data {name}: ")
    assert "\n" not in str(error.value)


def test_no_network_is_one_line(monkeypatch):
    def unreachable(*args, **options):
        assert "trust_remote_code" not in options
        raise ConnectionError("Couldn't reach\n'owner/name'")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"^data hf:owner/name: Couldn't reach 'owner/name'; check .*network"):
        open_named("hf:owner/name")


def test_no_progress_bars_without_a_terminal(folder, capfd):
    write_parquet(folder / "a.parquet", numbers(0, 3))
    open_named("a.parquet")
    assert capfd.readouterr().err == ""


def test_template_kwargs_are_a_column_of_every_row(tmp_path):
    rows = [{"text": "a"}, {"text": "b", "chat_template_kwargs": '{"x": 2}'},
            {"text": "c", "chat_template_kwargs": {"y": None}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = WithTemplateKwargs(open_source(DataSource(str(tmp_path / "rows.jsonl"))), {"x": 1})
    assert [row["chat_template_kwargs"] for row in source] == [{"x": 1}, {"x": 2}, {"x": 1}]
    assert source.place(2).endswith("rows.jsonl:3")


@pytest.mark.parametrize(("text", "source", "weight", "columns"), [
    ("pairs.jsonl[prompt=instruction]", "pairs.jsonl", 1, {"prompt": "instruction"}),
    ("a/*.jsonl[prompt = the question, chosen=a]@2.5", "a/*.jsonl", 2.5, {"prompt": "the question", "chosen": "a"}),
    ("rows[0-9].jsonl", "rows[0-9].jsonl", 1, {}),
    ("rows[0-9].jsonl[text=body]", "rows[0-9].jsonl", 1, {"text": "body"}),
    ("tfds:a/b:train[:10%]", "tfds:a/b:train[:10%]", 1, {}),
    ("tfds:a/b:train[:10%][text=body]@3", "tfds:a/b:train[:10%]", 3, {"text": "body"}),
    ("me@home.jsonl", "me@home.jsonl", 1, {})])
def test_columns_are_renamed_behind_a_name(text, source, weight, columns):
    assert parse_source(text) == DataSource(source, weight, columns)


@pytest.mark.parametrize("text", ["a.jsonl[prompt=]", "a.jsonl[=b]", "a.jsonl[prompt=a,b]", "a.jsonl[p=a=b]",
                                  "a.jsonl[p=a,p=b]", "a.jsonl[p=a,]"])
def test_what_renames_no_column_is_refused(text):
    with pytest.raises(InputError, match="must rename columns, ours=theirs"):
        parse_source(text)
