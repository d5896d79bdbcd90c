"""What an evaluation leaves: read back, by lm-eval's keys, and as the Hub takes it."""

import json

import pytest
import yaml
from answered import answered

from errors import InputError
from evals.comparison import compare
from evals.results import Benchmark, read_evaluation, write_evaluation

GSM8K = Benchmark("openai/gsm8k", "gsm8k", "exact_match,strict", "8-shot")


@pytest.fixture
def folder(tmp_path):
    evaluated = {"gsm8k": answered("gsm8k", [1.0, 0.0, 1.0, None], metric="exact_match,strict"),
                 "math:a/b.jsonl": answered("math:a/b.jsonl", [1.0], metric="math")}
    write_evaluation(tmp_path / "out", evaluated, {"model": "m"}, compare(evaluated, evaluated),
                     {"gsm8k": GSM8K, "ifeval": GSM8K})
    assert read_evaluation(tmp_path / "out") == evaluated
    return tmp_path / "out"


def test_results_have_lm_evals_keys_and_what_a_figure_needs(folder):
    results = json.loads((folder / "results.json").read_text())
    of = results["results"]["gsm8k"]
    assert of["exact_match,strict"] == pytest.approx(2 / 3)
    assert of["exact_match_stderr,strict"] == pytest.approx(1 / 3)
    assert (of["exact_match_questions,strict"], of["exact_match_failed,strict"]) == (3, 0.25)
    assert (of["truncated"], of["empty"], of["alias"]) == (0.0, 0.0, "gsm8k")
    assert of["exact_match_interval,strict"] == pytest.approx([0.2077, 0.9385], abs=1e-4)
    assert results["results"]["math:a/b.jsonl"]["math_stderr,none"] is None  # of one question: JSON has no NaN
    assert results["n-samples"]["gsm8k"] == {"original": 4, "effective": 4}
    assert results["config"] == {"model": "m"}
    assert [each["noise"] for each in results["comparison"]] == [True, True]


def test_the_hubs_yaml_is_what_its_own_library_reads(folder):
    [path] = (folder / ".eval_results").iterdir()
    [entry] = yaml.safe_load(path.read_text())
    assert (path.name, entry["dataset"], entry["value"]) == (
        "gsm8k.yaml", {"id": "openai/gsm8k", "task_id": "gsm8k"}, 66.67)
    assert entry["notes"] == "8-shot; exact_match,strict, 3 questions, 95 % interval 20.8 to 93.9"
    hub = pytest.importorskip("huggingface_hub")
    if hasattr(hub, "parse_eval_result_entries"):
        [parsed] = hub.parse_eval_result_entries([entry])
        assert (parsed.dataset_id, parsed.task_id, parsed.value) == ("openai/gsm8k", "gsm8k", 66.67)


def test_a_folder_without_an_evaluation_is_told(tmp_path):
    with pytest.raises(InputError, match="no evaluation"):
        read_evaluation(tmp_path)
