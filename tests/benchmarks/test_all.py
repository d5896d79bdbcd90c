"""benchmarks.all: every comparison by name, its table as Markdown, and what it says where one fails."""

import typing

import pytest

from benchmarks import all as every

LINE = every.Line("LoRA", "tokens/s", (300.0, 150.0), (3.0, 6.0), 0.01)


def test_each_name_is_a_comparison():
    names = typing.get_args(typing.get_args(every.Config.__dataclass_fields__["only"].type)[0])
    assert names == tuple(every.COMPARISONS)


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_table_is_markdown(capsys):
    every.print_table([LINE, LINE._replace(what="score")])
    head, rule, *rows = cells(capsys.readouterr().out)
    assert len(head) == len(rule) == 7
    assert set("".join(rule)) == {"-"}
    assert rows == [[what, "300.0 tokens/s", "150.0", "2.00", "3.00", "6.00", "1%"] for what in ("LoRA", "score")]


@pytest.mark.parametrize(("others", "quiet"), [(0.05, True), (0.06, False)])
def test_a_machine_that_was_not_quiet_is_told(capsys, others, quiet):
    every.print_table([LINE, LINE._replace(others=others)])
    assert ("not quiet" not in capsys.readouterr().out) is quiet


def test_what_was_measured_is_told_where_the_next_comparison_fails(monkeypatch, capsys):
    def fails(config):
        raise SystemExit("not the same work")

    monkeypatch.setattr(every, "COMPARISONS", {"sft": lambda config: iter([LINE]), "dpo": fails})
    monkeypatch.setattr(every.turns, "peer_versions", lambda *_: "torch 2")
    with pytest.raises(SystemExit, match="not the same work"):
        every.main(every.Config(trl_python="python", only=("sft", "dpo"), rounds=1))
    told = capsys.readouterr().out
    assert len(cells(told)) == 3
    assert "torch 2" in told
    assert "`python -m benchmarks.all --trl-python PYTHON --only sft dpo --rounds 1 --steps 6`" in told
