"""How a script starts: with malloc's settings where CPUs compute, and a place for what is compiled."""

import dataclasses
import os
import platform
import sys

import pytest

from cli import command


@dataclasses.dataclass
class Config:
    steps: int = 1


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs as a script of scripts/ would, where huge pages are given to who asks; what it does to its process is
    collected."""
    done = []
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setattr(command, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(command, "is_script", lambda: True)
    monkeypatch.setattr(command, "open_cache", lambda choice: done.append(("cache", choice)))
    monkeypatch.setattr(os, "execve", lambda program, arguments, environ: done.append(environ["GLIBC_TUNABLES"]))

    def start(*arguments):
        done.clear()
        monkeypatch.setattr(sys, "argv", ["script", *arguments])
        command.run(lambda config: done.append(config.steps), Config, "")
        return done

    return start


@pytest.mark.parametrize(("platforms", "tunables", "set_now"), [
    ("cpu", None, True), ("cuda,cpu", None, False), ("cpu", "", False)])
def test_malloc_is_set_once_and_where_cpus_compute(script, monkeypatch, platforms, tunables, set_now):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    if tunables is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    assert (command.MALLOC in script()) is set_now


@pytest.mark.parametrize(("enabled", "libc", "asks"), [
    ("always [madvise] never\n", ("glibc", "2.35"), True), ("[always] madvise never\n", ("glibc", "2.36"), False),
    ("always madvise [never]\n", ("glibc", "2.36"), False), ("", ("glibc", "2.36"), False),
    (None, ("glibc", "2.36"), False), ("always [madvise] never\n", ("glibc", "2.34"), False),
    ("always [madvise] never\n", ("musl", "1.2.5"), False), ("always [madvise] never\n", ("", ""), False)])
def test_malloc_is_set_where_it_is_glibcs_and_has_to_ask(script, monkeypatch, enabled, libc, asks):
    """A system without the file is macOS, or Linux without huge pages."""
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    command.HUGE_PAGES.unlink() if enabled is None else command.HUGE_PAGES.write_text(enabled)
    assert (command.MALLOC in script()) is asks


def test_a_script_keeps_what_it_compiles_where_it_is_told(script, monkeypatch):
    assert ("cache", None) in script()
    given = script("--compilation-cache", "/there", "--steps", "3")
    assert ("cache", "/there") in given
    assert given[-1] == 3
    monkeypatch.setattr(command, "is_script", lambda: False)
    assert script("--steps", "3") == [3]  # a benchmark
    assert script("--compilation-cache=off") == [("cache", "off"), 1]
