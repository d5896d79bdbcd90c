"""What is written by one process at a time."""

import os
import stat
import threading

import pytest

from errors import InputError
from files import lock, write_text


def test_one_holds_a_file_until_it_is_closed(tmp_path):
    path = tmp_path / "rows"
    with path.open("a") as first, path.open("a") as second:
        lock(first, "--output rows", "file")
        with pytest.raises(InputError, match="^--output rows is being written by another process.*another file$"):
            lock(second, "--output rows", "file")
        first.close()
        lock(second, "--output rows", "file")


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "all of it")
    reader.join(10)
    assert read == ["all of it"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "all of it")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "all of it"
