"""Where libtpu is looked for, and what is said where it cannot be had."""

import subprocess

import pytest

from errors import InputError
from planning import libtpu


@pytest.fixture(autouse=True)
def nowhere_yet(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(libtpu.importlib.util, "find_spec", lambda name: None)


def pip(monkeypatch, status, says=""):
    calls = []

    def run(command, **_):
        calls.append(command)
        return subprocess.CompletedProcess(command, status, "", says)

    monkeypatch.setattr(libtpu.subprocess, "run", run)
    return calls


def test_it_is_fetched_into_the_cache_folder_after_one_line(monkeypatch, tmp_path, capsys):
    calls, folder = pip(monkeypatch, 0), tmp_path / "cache" / "temper" / "libtpu"
    assert libtpu.find_libtpu(None) == folder
    assert calls[0][1:] == ["-m", "pip", "install", "--no-deps", "--target", str(folder), "libtpu"]
    assert capsys.readouterr().err.count("\n") == 1
    (folder / "libtpu").mkdir(parents=True)
    assert libtpu.find_libtpu(None) == folder
    assert len(calls) == 1


def test_without_a_network_the_line_says_how_to_get_it(monkeypatch):
    pip(monkeypatch, 1, "WARNING: Retrying\nERROR: No matching distribution found for libtpu\n")
    with pytest.raises(InputError, match=r"could not be fetched \(ERROR: No matching .*pip install --no-deps --target"):
        libtpu.find_libtpu(None)


def test_a_named_folder_has_it_or_is_refused(monkeypatch, tmp_path):
    calls = pip(monkeypatch, 0)
    with pytest.raises(InputError, match=f"--libtpu {tmp_path}: .*pip install --no-deps --target {tmp_path} libtpu"):
        libtpu.find_libtpu(tmp_path)
    (tmp_path / "libtpu").mkdir()
    assert libtpu.find_libtpu(tmp_path) == tmp_path
    assert not calls
