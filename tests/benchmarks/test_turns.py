"""What is counted of a turn, what ends a comparison, and how a process is measured."""

import sys

import pytest

from benchmarks import turns

WORK = turns.Work("work", "tokens", 100, (0.01, 0.01))


def turn(seconds, losses=(1.0, 1.0)):
    return turns.Turn(list(seconds), list(losses), 1.0, {}, 0.0)


def test_the_first_steps_of_each_turn_are_not_counted():
    both = [turn([50, 20, 1, 2]), turn([60, 30, 3, 2])]
    assert turns.median_step(both) == 2
    assert turns.speeds(WORK, *both) == [100, 50, 100 / 3, 50]
    assert turns.ratio(both, [turn([1, 1, 6, 6])]) == 3


@pytest.mark.parametrize("losses", [(1.02, 1.0), (1.0, 0.98), (float("nan"), 1.0)])
def test_sides_whose_losses_differ_did_not_do_the_same_work(losses):
    with pytest.raises(SystemExit, match="did not do the same work"):
        turns.check_same_work(WORK, {"Temper": [turn([1], losses)], "TRL": [turn([1])]})


def test_rounding_is_the_same_work():
    turns.check_same_work(WORK, {"Temper": [turn([1], (1.009, 0.991))], "TRL": [turn([1])]})


def test_a_process_that_fails_ends_the_benchmark_with_its_last_lines(tmp_path):
    with pytest.raises(SystemExit, match="no such thing\n\nfailed with status 3"):
        turns.run_child([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"], tmp_path / "log")


def test_a_process_is_measured(tmp_path):
    code = "import os; held = b'x' * 2**26; print(os.environ['SAID'])"
    spent = turns.run_child([sys.executable, "-c", code], tmp_path / "log", SAID="this")
    assert (tmp_path / "log").read_text() == "this\n"
    assert spent.peak_gib > 2**-4
    assert 0 <= spent.others <= 1


def test_packages_of_the_peer_are_named_with_their_versions():
    assert turns.peer_versions(sys.executable, "numpy", "jax").startswith("numpy ")


def test_workers_have_the_malloc_settings_of_scripts_where_those_have_any(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(turns, "huge_pages_for_asking", lambda: True)
    assert turns.malloc_settings() == {"GLIBC_TUNABLES": turns.MALLOC}
    monkeypatch.setattr(turns, "huge_pages_for_asking", lambda: False)
    assert turns.malloc_settings() == {}
    monkeypatch.setattr(turns, "huge_pages_for_asking", lambda: True)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    assert turns.malloc_settings() == {}
