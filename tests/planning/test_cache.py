"""What was compiled is read back, and neither a damaged cache nor one that cannot be written ends a plan."""

import dataclasses
import gzip
import importlib.metadata

import pytest

from planning import cache
from planning.compiling import Compiled

TEXT = Compiled("text", "buffers", "ranges", {"of": 1}, "", 2.5, None)
FINISHED = dataclasses.replace(TEXT, optimal_seconds=0.1)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "temper" / "plans"


def test_what_was_kept_is_found_finished_only_where_it_was_finished(folder):
    assert (cache.find("key", False), cache.usual_seconds(False)) == (None, None)
    cache.keep("key", TEXT)
    assert (cache.find("key", False), cache.find("key", True)) == (TEXT, None)
    cache.keep("key", FINISHED)
    assert cache.find("key", True) == cache.find("key", False) == FINISHED
    assert (cache.usual_seconds(False), cache.usual_seconds(True)) == (2.5, 2.5)
    assert {each.name for each in folder.iterdir()} == {"key-cache", "seconds-text", "seconds-finished"}


@pytest.mark.parametrize("content", [
    b"", b"junk", gzip.compress(b"{}")[:12], gzip.compress(b"{"), gzip.compress(b"{}"), gzip.compress(b"[1]"),
    gzip.compress(b'{"text": "of another version"}'), gzip.compress(b"\xff\xfe")], ids=range(8))
def test_a_damaged_entry_is_compiled_anew(content, folder, capsys):
    folder.mkdir(parents=True)
    (folder / "key-cache").write_bytes(content)
    (folder / "seconds-text").write_bytes(content)
    assert (cache.find("key", False), cache.usual_seconds(False)) == (None, None)
    assert capsys.readouterr().err == f"warning: {folder / 'key-cache'} is damaged; it is compiled anew\n"
    cache.keep("key", TEXT)
    assert cache.find("key", False) == TEXT


def test_a_folder_that_cannot_be_written_is_one_warning(folder, capsys):
    folder.parent.write_text("a file where the folder would be")
    cache.keep("key", TEXT)
    warning, = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: what was compiled cannot be kept in {folder} (Not a directory); give XDG_C")


def test_a_plan_is_known_by_versions_and_the_compilers_flags(monkeypatch):
    first = cache.key_of("a")
    assert cache.key_of("a") == first != cache.key_of("b")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536")
    second = cache.key_of("a")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "another")
    assert len({first, second, cache.key_of("a")}) == 3
