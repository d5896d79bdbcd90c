"""The corpus of the standard library: which files, how they are decoded, and that splits are by file and for ever."""

import subprocess
import sys

import pytest

from data import python_stdlib
from data.python_stdlib import VALIDATION_SHARE, read_source, source_paths, split_of, stdlib_folder
from data.tfds_source import open_tfds
from errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small standard library in place of the interpreter's, and an empty TFDS folder."""
    import tensorflow_datasets as tfds

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(python_stdlib, "stdlib_folder", lambda: tmp_path / "lib")
    return tmp_path / "lib"


def write(folder, **files):
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_tests_packages_and_what_differs_between_machines_are_left_out(tmp_path):
    kept = ["ast.py", "json/decoder.py", "unittest/case.py", "test.py", "doctest.py"]
    left_out = ["site-packages/numpy/core.py", "dist-packages/six.py", "__pycache__/ast.py", "test/test_ast.py",
                "sqlite3/test/dbapi.py", "lib2to3/tests/pytree.py", "idlelib/idle_test/mock_idle.py",
                "pydoc_data/topics.py", "_sysconfigdata__linux_x86_64-linux-gnu.py", "sitecustomize.py",
                "config-3.13-x86_64-linux-gnu/python-config.py", "lib-dynload/array.so", "LICENSE.txt"]
    for name in kept + left_out:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    assert source_paths(tmp_path) == sorted(kept)


def test_files_are_decoded_by_their_cookie(tmp_path):
    write(tmp_path, latin="# -*- coding: latin-1 -*-\nname = 'Zoë'\n".encode("latin-1"), utf8="name = 'Zoë'\n".encode(),
          marked=b"\xef\xbb\xbfname = 1\n", windows=b"a = 1\r\nb = 2\r", broken="name = 'Zoë'\n".encode("latin-1"),
          unknown=b"# coding: klingon\n", empty=b"", blank=b"\n \n")
    texts = {path.stem: read_source(path) for path in tmp_path.iterdir()}
    assert texts["latin"].endswith("name = 'Zoë'\n")
    assert texts["utf8"] == "name = 'Zoë'\n"
    assert texts["marked"] == "name = 1\n"
    assert texts["windows"] == "a = 1\nb = 2\n"
    assert [name for name, text in sorted(texts.items()) if text is None] == ["blank", "broken", "empty", "unknown"]


def test_the_split_of_a_file_never_changes():
    """Literal values: another hash, or one that is seeded by the process, would move files from split to split."""
    assert [split_of(path) for path in ("token.py", "sched.py", "encodings/cp865.py")] == ["validation"] * 3
    assert [split_of(path) for path in ("ast.py", "json/decoder.py", "encodings/cp932.py")] == ["train"] * 3
    shares = [split_of(f"package/module{i}.py") == "validation" for i in range(4000)]
    assert abs(sum(shares) / len(shares) - VALIDATION_SHARE) < 0.015


def test_every_file_is_in_one_split_as_it_stands(folder):
    write(folder, token=b"a = 1\n", ast="# Zoë\n".encode(), json__decoder=b"c = 3\r\n", empty=b"",
          test__support=b"d = 4\n")
    assert list(open_tfds("python_stdlib:validation")) == [{"path": "token.py", "text": "a = 1\n"}]
    train = sorted(open_tfds("python_stdlib"), key=lambda row: row["path"])
    assert train == [{"path": "ast.py", "text": "# Zoë\n"}, {"path": "json/decoder.py", "text": "c = 3\n"}]


def test_pythons_of_other_versions_do_not_share_a_folder(folder):
    write(folder, token=b"a = 1\n", ast=b"b = 2\n")
    open_tfds("python_stdlib")
    (prepared,) = (path for path in (folder.parent / "tfds/python_stdlib").iterdir() if path.is_dir())
    assert prepared.name == "{}.{}.{}".format(*sys.version_info)


def test_an_interpreter_without_sources_is_an_error(folder):
    folder.mkdir()
    with pytest.raises(InputError, match=f"no Python sources in {folder}") as error:
        open_tfds("python_stdlib")
    assert "\n" not in str(error.value)
    assert not list(folder.parent.glob("tfds/python_stdlib/*.*.*/*"))


def test_the_interpreters_own_library_is_found():
    paths = source_paths(stdlib_folder())
    assert {"ast.py", "json/decoder.py", "token.py"} < set(paths)
    assert {split_of(path) for path in paths} == {"train", "validation"}


def test_of_processes_that_ask_at_once_one_builds(folder, tmp_path):
    """Each counts the files that it reads; the files are slow to read, so that the processes meet."""
    write(folder, token=b"a = 1\n", ast=b"b = 2\n")
    code = f"""if True:
        import pathlib, time
        from data import python_stdlib
        from data.tfds_source import open_tfds

        def slowly(path, read=python_stdlib.read_source):
            with open({str(tmp_path / "reads")!r}, "a") as file:
                file.write(path.name + "\\n")
            time.sleep(0.2)
            return read(path)

        python_stdlib.stdlib_folder = lambda: pathlib.Path({str(folder)!r})
        python_stdlib.read_source = slowly
        print(open_tfds("python_stdlib")[0]["text"])
    """
    run = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
           for _ in range(3)]
    assert [process.communicate() for process in run] == [("b = 2\n\n", "")] * 3  # and not a word of TFDS'
    assert sorted((tmp_path / "reads").read_text().split()) == ["ast.py", "token.py"]
