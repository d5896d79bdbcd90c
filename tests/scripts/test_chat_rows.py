"""What a chat template does to rows: told at the beginning of a run, counted in its metrics; flags that reach none."""

import json

import pytest
from chat_model import write_model

TEMPLATE = ("{% for m in messages %}{{ m.role[0] }}{{ mood if loop.first }}"
            "{{ '..' if m.role == 'assistant' and not loop.last else m.content }}"
            "{{ '<end>' if m.role == 'assistant' }}{% endfor %}{{ 'a' if add_generation_prompt }}")
TALK = [{"role": role, "content": content} for role, content in
        (("user", "hi"), ("assistant", "yes"), ("user", "sure?"), ("assistant", "no"))]


@pytest.fixture
def model(tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.mark.slow
def test_rows_of_turns_are_told_and_counted(model, run_script, write_rows, tmp_path):
    data = write_rows("talks.jsonl", [{"messages": TALK}] * 3)
    held_out = write_rows("held_out.jsonl", [{"messages": TALK, "tools": [{"name": "f"}]}])
    status, out, err = run_script("sft", "--model", model, "--data", data, "--eval-data", held_out, "--output-dir",
                                  tmp_path / "run", "--max-steps", 2, "--batch-size", 2)
    assert status == 0, err
    assert "note: rows checked: rows_added 3: the chat template writes earlier turns anew" in out
    assert "note: rows held out: tools_dropped 1: the chat template leaves out tools" in out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("rows_added", 0) for line in lines) > 0


def test_scores_are_of_the_last_turn_which_is_told(model, run_script, write_rows, tmp_path):
    data = write_rows("talks.jsonl", [{"messages": TALK}, {"messages": TALK[:2]}])
    status, out, err = run_script("score", "--model", model, "--data", data, "--output", tmp_path / "out.jsonl")
    assert status == 0, err
    assert "note: turns_dropped 1: turns are context alone" in out
    masks = [json.loads(line)["loss_mask"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [sum(mask) for mask in masks] == [len("no_"), len("yes_")]


@pytest.mark.parametrize(("script", "more"), [
    ("sft", ["--output-dir", "run", "--max-steps", "1"]), ("score", ["--output", "out.jsonl"]), ("generate", []),
    ("grpo", ["--output-dir", "run", "--max-steps", "1", "--rewards", "length(target=3)"])])
def test_template_kwargs_that_reach_nothing_are_refused(model, script, more, run_script, write_rows):
    data = write_rows("talks.jsonl", [{"messages": TALK}])
    flags = ["--model", model, "--data", data, *more, "--chat-template-kwargs", "{moood: glad}"]
    status, _, err = run_script(script, *flags)
    assert (status, err.count("\n")) == (1, 1)
    assert "--chat-template-kwargs: the chat template looks at no 'moood'" in err
