"""--sample-prompts: held-out prompts answered before and after, to be read; a task without a metric."""

import json

import pytest

from data.sources import DataSource
from errors import InputError
from evals.held_out import NAME, open_held_out
from evals.results import read_evaluation, write_evaluation
from evals.tables import print_figures
from tests.evals.test_graded import Chatty, Parrot


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(str(path))


def test_the_first_prompts_of_all_files_are_answered_without_their_answers(tmp_path, capsys):
    chat = {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]}
    pair = {"prompt": "two", "chosen": "2", "rejected": "3"}
    data = [write(tmp_path / "a.jsonl", [chat]), write(tmp_path / "b.jsonl", [pair, {"prompt": "three"}])]
    task = open_held_out(data, 2, Chatty(), 128, {"mood": "!"})
    assert [prompt.text for prompt in task.prompts] == [[{"role": "user", "content": "one"}], "two"]
    found = task.run(Parrot())
    assert [sample.completion for sample in found[NAME]] == ["[on", "[tw"]
    assert all(sample.values == {} and sample.finish_reason == "stop" for sample in found[NAME])
    write_evaluation(tmp_path / "evals", found, {})
    assert [each.prompt for each in read_evaluation(tmp_path / "evals")[NAME]] == [
        '[{"role": "user", "content": "one"}]', "two"]
    print_figures(found)
    assert capsys.readouterr().out == ""


def test_rows_without_a_prompt_are_one_line_that_names_the_flag(tmp_path):
    with pytest.raises(InputError, match=r"^--sample-prompts: .*a\.jsonl:1: no known columns"):
        open_held_out([write(tmp_path / "a.jsonl", [{"chosen": "a", "rejected": "b"}])], 1, Chatty(), 128, {})
