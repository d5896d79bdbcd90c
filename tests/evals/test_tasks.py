"""Tasks by name: what is asked, of which rows; what is refused, and how."""

import gzip
import json

import pytest
from answered import answered
from characters import TEMPLATE, Characters

from errors import InputError
from evals.named import NAMED
from evals.tasks import How, _called, open_tasks, split_names

CHAT, PLAIN = Characters(chat_template=TEMPLATE), Characters()
MBPP = [{"task_id": number, "text": "Add.", "test_list": ["assert add(1, 2) == 3"], "code": ""} for number in (9, 11)]
HUMANEVAL = {"task_id": "HumanEval/0", "prompt": "def add(a, b):\n", "entry_point": "add",
             "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}
ROWS = {"math500": {"problem": "1 + 1?", "answer": "2", "level": 1}, "aime24": {"Problem": "1 + 1?", "Answer": 2},
        "humaneval": HUMANEVAL, "humaneval+": HUMANEVAL, "mbpp+": {**MBPP[0], "prompt": "Add.", "test": "assert add"}}


def opened(tmp_path, name, rows, tokenizer=CHAT, **how):
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    (task,) = open_tasks([name], tokenizer, How(task_data={name: str(file)}, unsafe=True, **how), 97)
    return task.prompts


@pytest.mark.parametrize("name", ROWS)
def test_questions_are_asked_as_a_chat_or_gone_on_with(tmp_path, name):
    (first,), (second,) = (opened(tmp_path, name, [ROWS[name]], tokenizer) for tokenizer in (CHAT, PLAIN))
    assert first.tokens == CHAT.encode(f"u:{first.text};a:")
    assert second.tokens == PLAIN.encode(second.text)
    assert NAMED[name].stops
    assert opened(tmp_path, name, [ROWS[name]], CHAT, chat="never") == [second]


def test_code_goes_on_from_its_stub(tmp_path):
    (prompt,) = opened(tmp_path, "humaneval", [HUMANEVAL], PLAIN)
    assert prompt.text == HUMANEVAL["prompt"] == prompt.columns["prompt"]


def test_mbpp_is_its_test_split(tmp_path, capsys):
    assert [prompt.columns["task_id"] for prompt in opened(tmp_path, "mbpp", MBPP)] == [11]
    assert "1 of 2 rows are not of its test split" in capsys.readouterr().out
    hidden = opened(tmp_path, "mbpp+", [ROWS["mbpp+"]])[0].columns
    assert hidden["tests"] == "assert add"
    assert "test_list" not in hidden  # which are shown, and would be looked at first


def test_a_limit_is_of_questions(tmp_path):
    assert len(opened(tmp_path, "math500", [ROWS["math500"]] * 3, limit=2)) == 2


@pytest.mark.parametrize(("names", "how", "message"), [
    (["math500"], {"task_data": {"mbpp": "x.jsonl"}}, "no such task among --tasks"),
    (["math500"], {"task_data": {"math500:train": "x.jsonl"}}, "no such task among --tasks math500 has a split train;"),
    (["math:x.jsonl"], {"num_fewshot": 0}, "--num-fewshot 0: is for tasks of lm-eval's, and none of --tasks"),
    (["math500"], {"include_path": ("a", "b")}, "--include-path a b: is for tasks of lm-eval's"),
    (["math500"], {"task_data": {"math500": "nowhere.jsonl"}}, "task math500: its data cannot be had: .*nowhere.jsonl"),
    (["humaneval"], {"chat": "always"}, "the model has no chat template"),
    (["gsm8k"], {"template_kwargs": {"thinking": True}}, "the tokenizer has no chat template"),
    (["math:"], {}, "no source of rows")])
def test_bad_input_is_one_line(names, how, message):
    with pytest.raises(InputError, match=message):
        open_tasks(names, PLAIN, How(unsafe=True, **how), 97)


def test_a_benchmark_has_its_own_name_and_not_lm_evals():
    samples = {task: answered(task, [1.0]) for task in ("gpqa_cot", "gpqa_cot_parts")}
    found = _called("gpqa", "gpqa_cot", samples)
    assert {name: [sample.task for sample in own] for name, own in found.items()} == {
        "gpqa": ["gpqa"], "gpqa_parts": ["gpqa_parts"]}
    assert _called("mmlu", "mmlu", {"mmlu_law": samples["gpqa_cot"]}) == {"mmlu_law": samples["gpqa_cot"]}


@pytest.mark.parametrize("names", [["humaneval+", "humaneval_plus"], ["format(pattern='a'):{}"] * 2])
def test_no_task_is_asked_twice(tmp_path, names):
    (tmp_path / "rows.jsonl").write_text(json.dumps(HUMANEVAL) + "\n")
    file = str(tmp_path / "rows.jsonl")
    data = {name: file for name in names if "(" not in name}
    with pytest.raises(InputError, match="would be asked twice; leave out one"):
        open_tasks([name.format(file) for name in names], CHAT, How(task_data=data, unsafe=True), 97)


def test_rows_of_another_benchmark_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"rows.jsonl.gz:1: no row of math500 \(KeyError: 'problem'\); it has task_id"):
        opened(tmp_path, "math500", MBPP)


def test_names_are_split_outside_brackets():
    assert split_names("gsm8k, gym:chain_sum(min_terms=2, max_terms=3)") == [
        "gsm8k", "gym:chain_sum(min_terms=2, max_terms=3)"]
    for text, message in (("a,,b", "a name is empty"), ("a,a", "a is there twice")):
        with pytest.raises(InputError, match=message):
            split_names(text)


def test_limits_leave_room_for_reasoning():
    assert min(each.max_new_tokens for each in NAMED.values()) >= 1280
