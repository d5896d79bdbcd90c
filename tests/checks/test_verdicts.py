"""Verdicts, their table, JSON and exit status; no check is run that computes."""

import io
import json
import math

import numpy as np
import pytest
from failing_checks import raises
from rich.console import Console

from checks.report import as_json, exit_status, grouped, read_foretold, summary, table
from checks.tolerance import tolerance, worst_error
from checks.verdicts import Check, Verdict, judge, not_here
from errors import InputError


def found(status, name="x", note="", **figures):
    return Verdict("part", name, status, note, figures)


@pytest.mark.parametrize(("statuses", "status"), [
    (["ok"], 0), (["ok", "not run", "out of memory"], 0), (["ok", "wrong"], 1), (["ok", "slow"], 1),
    (["failed", "ok"], 1), (["not run"], 1), ([], 1)])
def test_the_exit_status_is_that_of_the_verdicts(statuses, status):
    assert exit_status([found(each) for each in statuses]) == status


def test_what_a_check_raises_is_its_verdict():
    verdict = judge(Check("part", "x", raises))
    assert (verdict.status, verdict.note) == ("failed", "ValueError: first line")


def test_memory_that_does_not_suffice_is_a_verdict_of_its_own():
    def full():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    def told_in_other_words():
        try:
            full()
        except RuntimeError:
            raise InputError("a cache does not fit") from None

    assert [judge(Check("part", "x", each)).status for each in (full, told_in_other_words)] == ["out of memory"] * 2


def test_what_cannot_run_is_told_once_for_each_reason():
    verdicts = [judge(Check("part", name, not_here(reason))) for name, reason in
                (("a", "no GPU"), ("b", "no TPU"), ("c", "no GPU"))] + [found("ok", "d")]
    assert [(each.name, each.note) for each in grouped(verdicts)] == [("a; c", "no GPU"), ("b", "no TPU"), ("d", "")]
    assert summary(verdicts) == "1 ok, 3 not run"


def test_the_table_has_what_was_foretold_beside_what_was_found(tmp_path):
    plan = [{"seconds": 0.25, "times": 2, "bytes_needed": 2**30}, {"seconds": 0.1, "bytes_needed": 3 * 2**30}]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    verdicts = [found("ok", "sft qwen3-0.6b", "12 tokens/s [x]"), found("wrong")]
    console = Console(width=160, record=True, file=io.StringIO())
    foretold = read_foretold([f"sft qwen3-0.6b={tmp_path}/plan.json"])
    console.print(table({"kind": "TPU v5e", "count": 4}, verdicts, foretold))
    text = console.export_text()
    assert "12 tokens/s [x]" in text
    assert "0.600 s a step, 3.00 GiB" in text
    assert "4 x TPU v5e" in text


@pytest.mark.parametrize("content", ["[1", "[1]", '{"sft": 3}', "[]"])
def test_a_file_that_foretells_nothing_is_one_line(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    for given in (f"sft={tmp_path}/plan.json", "plan.json", "sft=nowhere.json"):
        with pytest.raises(InputError, match=r"^--foretold '[^\n]*$"):
            read_foretold([given])


def test_json_holds_every_figure():
    kept = json.loads(json.dumps(as_json({"kind": "cpu"}, [found("slow", "copy", "half", share=0.1)])))
    assert kept["passed"] is False
    assert kept["verdicts"] == [{"part": "part", "name": "copy", "status": "slow", "note": "half",
                                 "figures": {"share": 0.1}, "seconds": 0.0}]


def test_the_worst_vector_counts_by_its_own_size_or_the_usual_one():
    expected = np.array([[3.0, 4.0], [0.0, 0.1], [30.0, 40.0]])
    change = np.array([[0.0, 0.0], [0.0, 0.5], [5.0, 0.0]])
    assert worst_error(expected + change, expected) == pytest.approx(0.1)  # 5 of 50; 0.5 of the usual 29 is less
    assert worst_error(expected + change, expected, np.array([True, True, False])) == pytest.approx(
        0.5 / math.sqrt((25 + 0.01) / 2))
    assert worst_error(np.full((1, 2), np.nan), np.ones((1, 2))) == math.inf


def test_a_tolerance_is_the_roundings_and_nothing_else():
    """Of a product in bfloat16, rounded twice on the way, and not of one that is off by one part in fifty."""
    import ml_dtypes

    random = np.random.default_rng(0)
    x, y = (random.standard_normal((1000, 64)).astype(np.float32) for _ in range(2))
    rounded = (x.astype(ml_dtypes.bfloat16).astype(np.float32) * y).astype(ml_dtypes.bfloat16)
    assert worst_error(rounded, x * y) < tolerance("bfloat16", 2, 1) < worst_error(1.02 * x * y, x * y)
    assert tolerance("float32", 4, 1024) < 1e-4
