"""How a script starts: with malloc's settings where CPUs compute, and a place for what is compiled."""

import dataclasses
import os
import sys

import pytest

from cli import command


@dataclasses.dataclass
class Config:
    steps: int = 1


@pytest.fixture
def script(monkeypatch):
    """Runs as a script of scripts/ would; what it does to its process is collected."""
    done = []
    monkeypatch.setattr(command, "is_script", lambda: True)
    monkeypatch.setattr(command, "open_cache", lambda choice: done.append(("cache", choice)))
    monkeypatch.setattr(os, "execve", lambda program, arguments, environ: done.append(environ["GLIBC_TUNABLES"]))
    monkeypatch.setattr(sys, "platform", "linux")

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


def test_a_script_keeps_what_it_compiles_where_it_is_told(script, monkeypatch):
    assert ("cache", None) in script()
    given = script("--compilation-cache", "/there", "--steps", "3")
    assert ("cache", "/there") in given
    assert given[-1] == 3
    monkeypatch.setattr(command, "is_script", lambda: False)
    assert script("--steps", "3") == [3]  # a benchmark
    assert script("--compilation-cache=off") == [("cache", "off"), 1]
