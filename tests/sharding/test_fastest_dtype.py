"""--dtype auto on CPUs: measured once, and kept for just what it was measured on."""

import importlib.metadata
import itertools
import json
import os
import time

import jax
import pytest
from processes import WAIT, start_program

from sharding import fastest_dtype
from sharding.compilation_cache import ENABLED, FOLDER
from sharding.fastest_dtype import cache_key_of, choose, compiled, default_dtype, fastest, read_cached, write_cached

HERE = {"processor": ["model name: fast"], "cpus": 2, "jax": "1.2"}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """What was found by the measurements so far, each of which finds bfloat16 faster; nothing is kept yet."""
    found = []

    def measure():
        found.append({"training": 2.0, "decoding": 1.5})
        return found[-1]

    monkeypatch.setattr(fastest_dtype, "measure", measure)
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    monkeypatch.setenv(ENABLED, "true")
    default_dtype.cache_clear()
    yield found
    default_dtype.cache_clear()


def start() -> str:
    """What another process would find."""
    default_dtype.cache_clear()
    return default_dtype()


@pytest.mark.parametrize(("ratios", "dtype"), [
    ((2.1, 1.6), "bfloat16"), ((1.1, 1.1), "bfloat16"), ((1.09, 1.09), "float32"), ((0.5, 0.9), "float32"),
    ((4.0, 0.9), "bfloat16"), ((0.9, 1.2), "float32"), ((0.86, 0.26), "float32")])
def test_bfloat16_has_to_be_clearly_faster_over_all(ratios, dtype):
    assert choose(dict(zip(fastest_dtype.WORKLOADS, ratios))) == dtype


def test_it_is_measured_once_told_then_and_kept(measured, tmp_path, capsys):
    assert start() == start() == default_dtype() == "bfloat16"
    [file] = (tmp_path / "kept").iterdir()
    assert capsys.readouterr().err == (
        f"note: bfloat16 is 1.73 times as fast as float32 on this CPU (training 2.00, decoding 1.50): --dtype auto is "
        f"bfloat16 (kept in {file})\n")
    assert len(measured) == 1


def test_accelerators_are_not_measured(measured, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert start() == "bfloat16"
    assert not measured


@pytest.mark.parametrize("off", ["false", "0", "No"])
def test_without_a_compilation_cache_it_is_kept_nowhere(off, measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(ENABLED, off)
    assert (start(), start(), len(measured)) == ("bfloat16", "bfloat16", 2)
    assert not (tmp_path / "kept").exists()
    assert "(not kept, as compiled programs are not)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_no_failure(measured, tmp_path, capsys):
    (tmp_path / "kept").write_text("a file where the folder would be")
    assert (start(), start(), len(measured)) == ("bfloat16", "bfloat16", 2)
    assert capsys.readouterr().err.count("cannot be kept in") == 2


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe", b"1" * 5000, b"[" * 100_000, b'{"dtype": "float64"}', b"float32",
                                  b"whole", b"of another"], ids=range(8))
def test_a_damaged_file_is_replaced(junk, measured, tmp_path):
    assert start() == "bfloat16"
    [file] = (tmp_path / "kept").iterdir()
    good = file.read_bytes()
    text = json.loads(good)
    file.write_bytes({b"whole": good + good, b"of another": json.dumps(text | {"cpus": 3}).encode()}.get(junk, junk))
    assert start() == "bfloat16"
    assert (len(measured), file.read_bytes(), os.listdir(file.parent)) == (2, good, [file.name])


def test_what_was_kept_is_found_where_nothing_has_changed(tmp_path):
    write_cached(tmp_path / "new" / "folder", HERE, "float32")
    assert read_cached(tmp_path / "new" / "folder", HERE) == "float32"
    write_cached(tmp_path / "new" / "folder", HERE, "bfloat16")
    assert read_cached(tmp_path / "new" / "folder", HERE) == "bfloat16"
    for name in HERE:
        assert read_cached(tmp_path / "new" / "folder", HERE | {name: "another"}) is None


def test_the_key_is_the_processors_the_versions_and_the_compilers_flags(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(fastest_dtype, "CPUINFO", cpuinfo)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    seen = [cache_key_of({})]  # as on macOS
    for text in ("model name : A\ncpu MHz : 1\nflags : avx", "model name : A\ncpu MHz : 1\nflags : avx amx_bf16",
                 "CPU part : 0xd0c\nFeatures : bf16"):
        cpuinfo.write_text(text)
        seen.append(cache_key_of({}))
    cpuinfo.write_text("CPU part : 0xd0c\nFeatures : bf16\ncpu MHz : 2\n" * 2)
    assert cache_key_of({"HOME": "/root"}) == seen[-1]
    seen.append(cache_key_of({"XLA_FLAGS": "--xla_dump_to=d"}))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    seen.append(cache_key_of({}))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "another")
    seen.append(cache_key_of({}))
    assert not [pair for pair in itertools.combinations(seen, 2) if pair[0] == pair[1]]


@pytest.mark.parametrize(("steps", "turns"), [([0.01], 7), ([0.1], 3), ([5.0], 1), ([0.08, 0.01, 0.02], 5)])
def test_the_fastest_turn_counts_and_a_slow_machine_has_fewer(steps, turns, monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    rest = itertools.cycle(steps)

    def call(name, seconds):
        calls.append(name)
        now[0] += seconds

    found = fastest({"a": lambda: call("a", next(rest)), "b": lambda: call("b", steps[0])})
    assert found == pytest.approx({"a": min(steps[:turns]), "b": steps[0]})
    assert calls == ["a", "b"] * (1 + turns)  # the first turn is not counted


@pytest.mark.parametrize("gradient", [False, True])
def test_what_is_measured_computes_in_its_dtype(gradient, monkeypatch):
    monkeypatch.setattr(fastest_dtype, "EMBED", 4)
    monkeypatch.setattr(fastest_dtype, "MLP", 8)
    for dtype in fastest_dtype.DTYPES:
        last = jax.tree.leaves(compiled(dtype, rows=2, layers=1, gradient=gradient)())[-1]
        assert (last.dtype, last.shape) == (dtype, (2, 4))
        assert jax.numpy.isfinite(last).all()


def test_it_is_measured_compiled_where_nothing_else_is(monkeypatch):
    monkeypatch.setattr(fastest_dtype, "MLP", 8)
    monkeypatch.setattr(fastest_dtype, "WORKLOADS", {"training": (2, 1)})
    with jax.disable_jit():
        assert fastest_dtype.measure()["training"] > 0


PROGRAM = """
import sys
from cli.checks import resolve_dtype
from sharding import fastest_dtype
from sharding.hosts import HostsConfig, connect
coordinator, number = sys.argv[1:]
connect(HostsConfig(coordinator, 2, int(number)))
fastest_dtype.measure = lambda: {"training": 0.5 + int(number)}
fastest_dtype.folder_in_use = lambda: None
print(resolve_dtype("auto"))
"""


@pytest.mark.slow
def test_process_0_decides_for_all():
    """And tells it."""
    printed = [process.communicate(timeout=WAIT) for process in start_program(PROGRAM, ids=(0, 1))]
    assert [out for out, _ in printed] == ["float32\n"] * 2
    assert ["--dtype auto" in err for _, err in printed] == [True, False]
