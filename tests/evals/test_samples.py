"""Samples come back from their file as they were, and lm-eval's readers find what they look for in it."""

import json

import numpy as np
import pytest

from errors import InputError
from evals.samples import Sample, file_name, read_samples, write_samples


def sample(question="q1", repeat=0, **changed):
    return Sample(**({"task": "gsm8k", "question": question, "family": question, "repeat": repeat,
                      "prompt": "How many?\u2028\r\n", "completion": "Four\u2028 or\r five.\ud800", "target": "4",
                      "values": {"exact_match,strict": 1.0, "exact_match,flexible": None, "length": 2.5},
                      "finish_reason": "stop", "doc": {"answer": "4", "ids": [1, 2]}} | changed))


def test_samples_come_back_as_they_were(tmp_path):
    samples = [sample(), sample(repeat=1, values={}), sample("q2", context_tokens=7, truncated_context=True, doc=None)]
    write_samples(tmp_path / "samples.jsonl", samples)
    assert read_samples(tmp_path / "samples.jsonl") == samples


def test_a_filter_has_a_row_of_lm_evals_columns(tmp_path):
    write_samples(tmp_path / "samples.jsonl", [sample(), sample("q2")])
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().split("\n") if line]
    assert [(row["doc_id"], row["filter"], row["metrics"]) for row in rows] == [
        (number, name, [metric]) for number in (0, 1)
        for name, metric in (("strict", "exact_match"), ("flexible", "exact_match"), ("none", "length"))]
    assert [row["exact_match"] for row in rows[:2]] == [1.0, None]
    assert rows[2]["length"] == 2.5
    assert rows[0]["resps"] == [[sample().completion]]
    assert rows[0]["target"] == "4"
    assert rows[0]["arguments"]["gen_args_0"]["arg_0"] == sample().prompt


def test_what_is_no_finite_number_is_null(tmp_path):
    values = {"a": float("nan"), "b": float("-inf"), "c,d": 2.0, "e": None}
    write_samples(tmp_path / "samples.jsonl", [sample(values=values)])
    assert read_samples(tmp_path / "samples.jsonl")[0].values == {"a": None, "b": None, "c,d": 2.0, "e": None}
    assert not {"NaN", "Infinity"} & {*(tmp_path / "samples.jsonl").read_text().replace(",", " ").split()}


def test_documents_of_numpy_are_written(tmp_path):
    write_samples(tmp_path / "samples.jsonl", [sample(doc={"ids": np.arange(2), "set": {1}, "n": np.float32(0.5)})])
    assert read_samples(tmp_path / "samples.jsonl")[0].doc == {"ids": [0, 1], "set": "{1}", "n": 0.5}


SOUND = dict.fromkeys(("prompt", "repeat", "context_tokens", "truncated_context", "answer", "doc", "target")) | {
    "task": "a", "question": "b", "family": "c", "finish_reason": "", "values": {"m": 1}, "resps": [["x"]]}


@pytest.mark.parametrize("line", [
    b"no json", b"[]", b'{"doc_id": 0}', b"\xff\xfe", *(json.dumps(SOUND | each).encode() for each in (
        {"resps": []}, {"resps": [[]]}, {"resps": 3}, {"resps": [[1]]}, {"values": [1]}, {"values": {"m": "1"}},
        {"question": ["b"]}, {"family": None}))])
def test_other_files_are_refused_with_their_line(tmp_path, line):
    (tmp_path / "samples.jsonl").write_bytes(json.dumps(SOUND).encode())
    assert [sample.values for sample in read_samples(tmp_path / "samples.jsonl")] == [{"m": 1}]
    (tmp_path / "samples.jsonl").write_bytes(line)
    with pytest.raises(InputError, match="samples.jsonl, line 1"):
        read_samples(tmp_path / "samples.jsonl")


def test_names_of_files_are_lm_evals_and_no_two_tasks_have_one():
    assert file_name("mmlu_pro") == "samples_mmlu_pro.jsonl"
    names = {file_name(task) for task in ("math:a/b.jsonl", "math:a_b.jsonl", "math:a b.jsonl", "math_a_b_jsonl")}
    assert len(names) == 4
    assert file_name("a-b") != file_name("a_b")
    assert all(name.startswith("samples_math_a_b_jsonl") for name in names)
    assert len(file_name("gym:" + "x" * 500)) < 150
