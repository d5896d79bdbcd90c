"""What is compiled is kept: where, how much of it, and only where all processes see the same folder."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from processes import WAIT, start_program

from sharding import compilation_cache
from sharding.compilation_cache import ENABLED, FOLDER, LEAST_SECONDS, default_folder, folder_in_use, open_cache, prune

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """As of a user who has set nothing; what is set is put back."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (FOLDER, ENABLED, LEAST_SECONDS):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def test_it_is_in_the_users_cache_folder_and_theirs_alone(tmp_path):
    open_cache(None)
    assert os.environ[FOLDER] == str(tmp_path / "cache" / "temper" / "xla")
    assert Path(os.environ[FOLDER]).stat().st_mode & 0o777 == 0o700
    assert list(Path(os.environ[FOLDER]).iterdir()) == []


@pytest.mark.parametrize("given", ["", "relative/folder"])
def test_without_an_absolute_xdg_cache_home_it_is_below_home(given, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "temper" / "xla"


def test_a_folder_that_is_given_wins_over_the_environments_and_that_over_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "theirs"))
    open_cache(None)
    assert os.environ[FOLDER] == str(tmp_path / "theirs")
    open_cache(str(tmp_path / "given"))
    assert os.environ[FOLDER] == str(tmp_path / "given")
    assert not (tmp_path / "cache").exists()


def test_off_is_off(tmp_path):
    open_cache("off")
    assert os.environ[ENABLED] == "false"
    assert FOLDER not in os.environ
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("bad", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_one_warning(bad, tmp_path, capsys):
    (tmp_path / "file").touch()
    open_cache(str(tmp_path / bad))
    assert os.environ[ENABLED] == "false"
    assert capsys.readouterr().err.count("\n") == 1


def test_no_home_is_one_warning(monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    open_cache(None)
    assert capsys.readouterr().err == ("warning: compiled programs cannot be kept in a cache folder (no home "
                                       "directory); give --compilation-cache another, or off\n")


def test_what_else_is_kept_lies_in_the_same_folder(tmp_path, monkeypatch):
    assert folder_in_use() == tmp_path / "cache" / "temper" / "xla"  # that of a benchmark, which opens none
    open_cache(str(tmp_path / "given"))
    assert folder_in_use() == tmp_path / "given"
    monkeypatch.setenv(FOLDER, "gs://bucket/folder")
    assert folder_in_use() is None
    open_cache("off")
    monkeypatch.delenv(FOLDER)
    assert folder_in_use() is None
    monkeypatch.delenv(ENABLED)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    assert folder_in_use() is None


def test_what_was_read_last_is_kept_up_to_the_bound(tmp_path):
    for age, name in enumerate(("now-cache", "yesterday-cache", "read-now-cache", "old-cache")):
        (tmp_path / name).write_bytes(b"12345")
        os.utime(tmp_path / name, (100 - age if name != "read-now-cache" else 101, 100 - age))
    (tmp_path / "other").write_bytes(b"12345")
    prune(tmp_path, 15)
    assert {path.name for path in tmp_path.iterdir()} == {"now-cache", "yesterday-cache", "read-now-cache", "other"}
    prune(tmp_path, 9)
    assert {path.name for path in tmp_path.iterdir()} == {"read-now-cache", "other"}


def test_opening_prunes(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "LARGEST", 0)
    (tmp_path / "f-cache").write_bytes(b"1")
    open_cache(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_entries_that_cannot_be_read_are_one_line(capsys):
    others = []
    shown = compilation_cache._first_alone(lambda *warning: others.append(warning))
    for name in "fg":
        shown(UserWarning(f"Error reading persistent compilation cache entry for '{name}': OSError: full"), UserWarning)
    shown("something else", UserWarning)
    assert capsys.readouterr().err == ("warning: Error reading persistent compilation cache entry for 'f': OSError: "
                                       "full; it is compiled anew\n")
    assert others == [("something else", UserWarning)]


PROGRAM = """
import sys
from sharding.compilation_cache import open_cache
open_cache(None)
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
jax.jit(lambda x: x @ x)(jax.numpy.ones((3, 3)))
print(sum("cache_hits" in event for event in events))
"""


@pytest.mark.slow
def test_a_second_start_reads_what_the_first_one_compiled(tmp_path):
    """A file that is damaged is compiled anew, and so told."""
    environ = os.environ | {LEAST_SECONDS: "0", "PYTHONPATH": str(ROOT)}

    def start():
        return subprocess.run([sys.executable, "-c", PROGRAM], env=environ, cwd=ROOT, text=True, check=True,
                              capture_output=True)

    first, second = start(), start()
    assert (first.stdout, int(second.stdout) > 0, second.stderr) == ("0\n", True, "")
    for entry in default_folder().iterdir():
        entry.write_bytes(b"damaged")
    damaged = start()
    assert damaged.stdout == "0\n"
    assert damaged.stderr.count("persistent compilation cache") == 1


WORKER = """
import os, sys
os.environ["XDG_CACHE_HOME"] = sys.argv[3].format(sys.argv[2])
from sharding import compilation_cache, hosts
compilation_cache.open_cache(sys.argv[4] if sys.argv[2] == "1" and sys.argv[4] else None)
hosts.connect(hosts.HostsConfig(sys.argv[1], 2, int(sys.argv[2]), heartbeat_timeout=6))
import jax
print(bool(jax.config.jax_enable_compilation_cache))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "choice", "kept", "told"), [
    ("{tmp}/shared", "", True, 0), ("{tmp}/host{{}}", "", False, 1), ("{tmp}/shared", "off", False, 1)])
def test_several_processes_keep_programs_only_in_a_folder_that_all_see(folder, choice, kept, told, tmp_path):
    processes = start_program(WORKER, folder.format(tmp=tmp_path), choice, ids=(0, 1))
    printed = [process.communicate(timeout=WAIT) for process in processes]
    assert [out for out, _ in printed] == [f"{kept}\n"] * 2, printed
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
    assert [err.count("note: ") for _, err in printed] == [told, 0]
