"""Two evaluations in pairs: which may be compared, and what a difference is called."""

import dataclasses

import pytest
from answered import answered

from errors import InputError
from evals.comparison import compare
from evals.tables import open_console, print_comparison, print_figures, print_series, sentence

FEW, MANY = [1.0] * 2 + [0.0] * 58, [1.0] * 30 + [0.0] * 30


def compared(before, after, **changed):
    [found] = compare({"sums": answered(values=before, **changed)}, {"sums": answered(values=after, **changed)})
    return found


def test_a_difference_within_noise_says_so_and_another_does_not():
    assert "within noise (1 up, 0 down, p 1.000)" in sentence(compared(FEW, [1.0] * 3 + [0.0] * 57))
    assert "higher by 46.7 points (28 up, 0 down, p < 0.001)" in sentence(compared(FEW, MANY))
    assert "lower by 46.7 points" in sentence(compared(MANY, FEW))


def test_what_failed_on_either_side_is_no_pair():
    found = compared([None, 1.0, 0.0], [1.0, None, 1.0])
    assert (found.difference.n, found.difference.wins) == (1, 1)
    assert found.before.failed == pytest.approx(1 / 3)
    assert "nothing to compare" in sentence(compared([None], [1.0]))


def test_other_questions_or_prompts_are_refused_in_a_line():
    samples = answered(values=MANY)
    with pytest.raises(InputError, match="sums: the baseline has 60 questions, this evaluation 20, and 20 are"):
        compare({"sums": samples}, {"sums": samples[:20]})
    others = [dataclasses.replace(sample, question="x" + sample.question) for sample in samples]
    with pytest.raises(InputError, match="0 are the same in the same prompts"):
        compare({"sums": samples}, {"sums": others})
    with pytest.raises(InputError, match="none of the tasks of this evaluation \\(sums\\), but products"):
        compare({"products": samples}, {"sums": samples})


def test_tasks_of_one_side_are_passed_over():
    found = compare({"sums": answered(), "more": answered("more")}, {"sums": answered(), "other": answered("other")})
    assert [each.after.task for each in found] == ["sums"]


def printed(*arguments, capsys):
    console = open_console()
    print_comparison(*arguments, console=console)
    return capsys.readouterr().out


def test_tables_have_all_that_a_figure_needs(capsys):
    before, after = answered(values=FEW, finish_reason="length"), answered(values=MANY, completion="")
    print_figures({"sums": before})
    lines = capsys.readouterr().out.splitlines()
    assert "n mean 95 % interval truncated % empty % failed %" in " ".join(lines[1].split())
    assert any(line.split() == ["correct", "60", "3.3", "0.9", "to", "11.4", "100.0", "0.0", "0.0"] for line in lines)
    out = printed(compare({"sums": before}, {"sums": after}), capsys=capsys)
    for row in (["correct", "before", "60", "3.3", "0.9", "to", "11.4", "100.0", "0.0", "0.0"],
                ["after", "60", "50.0", "37.7", "to", "62.3", "0.0", "100.0", "0.0"],
                ["difference", "*", "60", "+46.7", "+32.0", "to", "+58.3"]):
        assert any(line.split() == row for line in out.splitlines()), row
    assert "sums correct: higher by 46.7 points" in out


def test_names_are_no_markup_and_numbers_no_shares(capsys):
    samples = answered("a[/]b", values=[20.5, 30.0], metric="ppl[red],none")
    print_figures({"a[/]b": samples})
    out = capsys.readouterr().out
    assert "a[/]b" in out
    assert "ppl[red]" in out
    assert "25.25" in out


def test_prompts_that_lost_their_beginning_are_told(capsys):
    print_figures({"sums": [*answered(truncated_context=True), *answered()]})
    assert "sums: 2 of 4 prompts were longer than the model's context" in capsys.readouterr().out


def test_several_models_are_compared_with_the_first(capsys):
    evaluations = {name: {"sums": answered(values=values)} for name, values in (
        ("step 0", FEW), ("step 10", [1.0] * 3 + [0.0] * 57), ("step 20", MANY))}
    print_series(evaluations)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines if line and line[0] == "step"] == [["step", "10"], ["step", "20"]]
    assert [line[:3] for line in lines if line and line[0] == "difference"] == [
        ["difference", "60", "+1.7"], ["difference", "*", "60"]]
