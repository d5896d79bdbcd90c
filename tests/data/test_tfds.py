"""TFDS data sets: rows in plain Python, pickles that reopen, and every bad data set one line that says what to do."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from data.tfds_source import open_tfds
from errors import InputError

CHATS = [[("user", "Wie heißt du?"), ("assistant", "Zoë")], [], [("user", "a"), ("assistant", "b"), ("user", "c")]]
F = tfds.features


class TinyChats(tfds.core.GeneratorBasedBuilder):
    """Three rows with every kind of column that a text data set has, and ten in `validation`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict({
            "id": np.int64, "messages": F.Sequence({"role": F.Text(), "content": F.Text()}),
            "turns": F.Dataset({"content": F.Text()}), "tokens": F.Sequence(np.int32), "tags": F.Sequence(F.Text()),
            "label": F.ClassLabel(names=["bad", "good"]), "about": {"topic": F.Text(), "share": np.float32},
            "grid": F.Tensor(shape=(2, 2), dtype=np.int32), "raw": F.Tensor(shape=(), dtype=np.bytes_),
            "calls": F.Sequence({"about": {"topic": F.Text()}})}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "validation": self._generate_examples(10)}

    def _generate_examples(self, count):
        for i in range(count):
            messages = [{"role": role, "content": content} for role, content in CHATS[i % 3]]
            yield i, {"id": i, "messages": messages, "turns": [{"content": turn["content"]} for turn in messages],
                      "tokens": list(range(i)), "tags": ["ä", "b"][: i % 3], "label": "good",
                      "about": {"topic": "names", "share": 0.5}, "grid": [[1, 2], [3, i]], "raw": b"\xff\xfe",
                      "calls": [{"about": {"topic": "x"}}] * i}


class Unpreparable(tfds.core.GeneratorBasedBuilder):
    """Fails as `error` says when it is being prepared."""

    VERSION = tfds.core.Version("1.0.0")
    error: Exception

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict({"text": F.Text()}))

    def _split_generators(self, dl_manager):
        raise self.error

    def _generate_examples(self):
        yield from ()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS folder with the tiny data set in it; not to be written to."""
    root = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.core.constants, "DATA_DIR", str(root))
        open_tfds("tiny_chats")
    return root


@pytest.fixture
def root(prepared, tmp_path, monkeypatch):
    """A copy of it, where TFDS looks."""
    root = tmp_path / "tfds"
    shutil.copytree(prepared, root)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(root))
    return root


@pytest.fixture
def fails(root):
    def check(spec, *patterns):
        with pytest.raises(InputError) as error:
            list(open_tfds(spec))
        message = str(error.value)
        assert "\n" not in message
        assert all(pattern in message for pattern in patterns), message

    return check


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def folder(root):
    return root / "tiny_chats/1.0.0"


def shard(root, split):
    return folder(root) / f"tiny_chats-{split}.array_record-00000-of-00001"


def test_rows_are_plain_python(root):
    row = {row["id"]: row for row in open_tfds("tiny_chats")}[2]
    messages = [{"role": role, "content": content} for role, content in CHATS[2]]
    assert row == {"id": 2, "messages": messages, "turns": [{"content": turn["content"]} for turn in messages],
                   "tokens": [0, 1], "tags": ["ä", "b"], "label": 1, "about": {"topic": "names", "share": 0.5},
                   "grid": [[1, 2], [3, 2]], "raw": b"\xff\xfe", "calls": [{"about": {"topic": "x"}}] * 2}
    assert {type(item) for item in row["tokens"] + row["grid"][0] + [row["id"], row["label"]]} == {int}
    assert type(row["about"]["share"]) is float


def test_sequences_may_be_empty(root):
    row = {row["id"]: row for row in open_tfds("tiny_chats")}[0]
    assert (row["tokens"], row["tags"], row["calls"]) == ([], [], [])
    assert {row["id"]: row for row in open_tfds("tiny_chats")}[1]["messages"] == []


@pytest.mark.parametrize(("spec", "rows"), [
    ("tiny_chats", 3), ("tiny_chats:train", 3), ("tiny_chats:validation", 10), ("tiny_chats:validation[:50%]", 5),
    ("tiny_chats:validation[8:]", 2), ("tiny_chats:train+validation[:1]", 4), ("tiny_chats:all", 13)])
def test_splits_and_slices(root, spec, rows):
    source = open_tfds(spec)
    assert len(source) == len(list(source)) == rows


def test_rows_and_their_places_go_by_index(root):
    source = open_tfds("tiny_chats:validation")
    assert sorted(row["id"] for row in source) == list(range(10))
    assert source[-1] == source[9]
    assert source.place(5) == "tfds:tiny_chats:validation row 5"
    assert open_tfds("tiny_chats").place(0) == "tfds:tiny_chats:train row 0"
    with pytest.raises(IndexError):
        source[10]


def test_a_pickle_is_small_and_reopens_where_nobody_knows_the_class(root):
    source = open_tfds("tiny_chats:validation[2:5]")
    pickled = pickle.dumps(source)
    assert len(pickled) < 500
    code = f"import json, pickle; print(json.dumps([row['id'] for row in pickle.loads({pickled!r})]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (json.loads(run.stdout), run.stderr) == ([row["id"] for row in source], "")


def test_nothing_is_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    open_tfds("tiny_chats")
    assert capfd.readouterr() == ("", "")


def test_what_a_killed_build_left_is_not_taken_for_a_data_set(root):
    """TFDS writes into incomplete.*, and renames it at the end."""
    folder(root).rename(folder(root).with_name("incomplete.ABCDEF_1.0.0"))
    assert len(open_tfds("tiny_chats")) == 3
    assert folder(root).is_dir()


def test_a_prepared_data_set_needs_no_class(root, fails):
    """As one has it that another machine, with TensorFlow and network, prepared."""
    copy = root / "copied/1.0.0"
    shutil.copytree(folder(root), copy)
    edit(copy / "dataset_info.json", lambda info: info.update(name="copied", moduleName="gone.away"))
    for path in copy.glob("tiny_chats*"):
        path.rename(path.with_name(path.name.replace("tiny_chats", "copied")))
    assert len(open_tfds("copied:validation")) == 10


def test_bad_names_and_splits(root, fails):
    fails("tinny_chats", "TFDS knows no data set of this name", str(root))
    fails("tiny_chats/large", "BuilderConfig large not found", "NAME/CONFIG")
    fails("tiny chats", "tiny chats")
    fails("", "give NAME")
    fails("tiny_chats:test", "Unknown split 'test'; it has train, validation")
    fails("tiny_chats:train[:", "split 'train[:'", "it has train, validation")
    fails("tiny_chats:train[:99]", "[:99]", "3 examples; it has")


@pytest.mark.parametrize("split", ["train[:0]", "train[2:1]", "train+validation[4:4]", "train[:1%]"])
def test_an_empty_split_is_an_error(fails, split):
    fails(f"tiny_chats:{split}", f"split {split!r} holds no rows", "train, validation")


def test_a_split_without_rows_is_an_error(root, fails):
    edit(folder(root) / "dataset_info.json", lambda info: info["splits"][0].update(shardLengths=["0"]))
    fails("tiny_chats:train", "holds no rows")


def test_a_format_without_random_access_is_an_error(root, fails):
    edit(folder(root) / "dataset_info.json", lambda info: info.update(fileFormat="tfrecord"))
    fails("tiny_chats", "tfrecord", "no random access", "file_format='array_record'", str(folder(root)))


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:-1], lambda data: b"x" * len(data)])
def test_a_corrupt_shard_is_found_on_opening(root, damage):
    path = shard(root, "train")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"corrupt shard {path} .*; delete {folder(root)} and have"):
        open_tfds("tiny_chats")
    assert len(open_tfds("tiny_chats:validation")) == 10


def test_a_missing_shard_and_that_of_another_split(root, fails):
    shutil.copy(shard(root, "validation"), shard(root, "train"))
    fails("tiny_chats", "corrupt shard", "10 rows, not 3")
    shard(root, "train").unlink()
    fails("tiny_chats", "corrupt shard", "No such file")


def test_a_flipped_byte_is_found_on_reading(root):
    path = shard(root, "validation")
    source, data = open_tfds("tiny_chats:validation"), bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"tfds:tiny_chats:validation row \d: corrupt \(.*\); delete"):
        list(source)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_folder_without_its_description_is_an_error(root, fails, name):
    (folder(root) / name).unlink()
    fails("tiny_chats", "incomplete or corrupt", str(folder(root)))


def test_a_description_cut_short_is_an_error(root, fails):
    path = folder(root) / "dataset_info.json"
    path.write_text(path.read_text()[:100])
    fails("tiny_chats", "incomplete or corrupt", str(root))


@pytest.mark.parametrize(("error", "patterns"), [
    (requests.exceptions.ConnectionError("Failed to resolve 'example.org'\nand so on"),
     ["cannot be prepared", "Failed to resolve 'example.org'", "network"]),
    (tfds.download.DownloadError("404"), ["cannot be prepared", "404"]),
    (AssertionError("Manual directory does not exist"), ["cannot be prepared", "Manual directory"]),
    (OSError(28, "No space left on device"), ["cannot be prepared", "No space left"]),
    (ModuleNotFoundError("No module named 'tensorflow'"), ["needs more packages", "'tensorflow'", "TFDS_DATA_DIR"])])
def test_what_cannot_be_prepared_is_an_error_and_leaves_nothing(root, fails, monkeypatch, error, patterns):
    monkeypatch.setattr(Unpreparable, "error", error, raising=False)
    fails("unpreparable", *patterns)
    assert not [path for path in (root / "unpreparable").iterdir() if path.is_dir()]


def test_a_data_dir_that_is_none_is_an_error(root, fails, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "file"))
    fails("tiny_chats", "cannot be prepared", str(tmp_path / "file"))
