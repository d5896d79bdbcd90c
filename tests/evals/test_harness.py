"""lm-evaluation-harness over a subject: its own loop and ours give the same figures. Needs lm-eval."""

import json
import random

import numpy as np
import pytest

pytest.importorskip("lm_eval")

import yaml  # noqa: E402
from characters import TEMPLATE, Characters, subject_of  # noqa: E402

from errors import InputError  # noqa: E402
from evals import harness  # noqa: E402
from evals.harness import Generation, HarnessModel, judge  # noqa: E402
from evals.lm_eval_tasks import load_tasks, open_manager  # noqa: E402

ROWS = [{"context": f"{word} is", "choices": ["a b", "cd", "e"], "gold": place % 3, "passage": word[0]}
        for place, word in enumerate(["ab", "ac", "bc", "ab"])]
KINDS = {
    "choice": {"output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "{{choices}}",
               "doc_to_target": "{{gold}}", "num_fewshot": 1},
    "answer": {"output_type": "generate_until", "doc_to_text": "{{context}}", "doc_to_target": "{{choices[gold]}}",
               "generation_kwargs": {"until": ["e"], "max_gen_toks": 6},
               "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]},
    "text": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{context * 6}}"},
}


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, task in KINDS.items():
        files = {"test": str(folder / "rows.jsonl")}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | {
            "task": f"our_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": files},
            "test_split": "test"}))
    return open_manager("our_choice", [str(folder)])


@pytest.fixture(scope="module")
def subject():
    return subject_of()


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_lm_evals_own_loop(manager, subject, kind):
    from lm_eval import simple_evaluate

    model = HarnessModel(subject)
    theirs = simple_evaluate(model, tasks=[f"our_{kind}"], task_manager=manager, bootstrap_iters=0)
    (task,) = load_tasks(manager, f"our_{kind}", {}, {})
    judged = judge(task, model)
    samples = judged.samples[f"our_{kind}"]
    assert len({sample.question for sample in samples}) == len(samples) == len(ROWS)
    means = {name: np.mean([sample.values[name] for sample in samples]) for name in samples[0].values}
    figures = {name: value for name, value in theirs["results"][f"our_{kind}"].items()
               if "," in name and "stderr" not in name}
    assert {name: value for name, value in (means | judged.corpus).items() if "text_" not in name} == pytest.approx(
        figures)


def test_a_task_asks_the_same_each_time_and_leaves_others_random_numbers_alone(manager, subject):
    """Before and after a run, say: examples in prompts are drawn."""
    (task,) = load_tasks(manager, "our_choice", {}, {})
    random.seed(5)
    first, drawn = judge(task, HarnessModel(subject)).samples["our_choice"], random.random()
    random.seed(5)
    assert random.random() == drawn
    again = judge(task, HarnessModel(subject)).samples["our_choice"]
    assert [sample.prompt for sample in again] == [sample.prompt for sample in first]


def test_each_answer_of_several_is_graded_by_itself(manager, subject):
    (task,) = load_tasks(manager, "our_answer", {}, {})
    samples = judge(task, HarnessModel(subject, Generation(num_samples=3, seed=1)), limit=2).samples["our_answer"]
    assert [sample.repeat for sample in samples] == [0, 1, 2, 0, 1, 2]
    assert len({sample.completion for sample in samples}) > 2  # drawn, since three greedy answers would be one
    again = judge(task, HarnessModel(subject, Generation(num_samples=2, seed=1)), limit=1).samples["our_answer"]
    assert [sample.completion for sample in again] == [sample.completion for sample in samples[:2]]


def test_what_was_cut_is_told(manager, subject):
    (task,) = load_tasks(manager, "our_answer", {}, {"generation_kwargs": {"max_gen_toks": 3}})
    samples = judge(task, HarnessModel(subject)).samples["our_answer"]
    assert all(sample.finish_reason == "length" for sample in samples if len(sample.completion) == 3)
    (task,) = load_tasks(manager, "our_choice", {}, {"doc_to_text": "{{context * 9}}"})
    samples = judge(task, HarnessModel(subject)).samples["our_choice"]
    assert all(sample.truncated_context for sample in samples)


def test_prompts_are_the_same_question_whatever_the_template(manager):
    def asked(template):
        model = HarnessModel(subject_of(Characters(chat_template=template)))
        (task,) = load_tasks(manager, "our_answer", {}, {})
        samples = judge(task, model, limit=2, chat=True).samples["our_answer"]
        return [sample.question for sample in samples], samples[0].prompt

    questions, prompt = asked(TEMPLATE)
    assert prompt == "u:ab is;a:"
    others, prompt = asked(TEMPLATE.replace(":", "="))
    assert prompt == "u=ab is;a="
    assert questions == others


def test_a_chat_template_without_a_system_message_has_none():
    model = HarnessModel(subject_of(Characters(chat_template="{% for m in messages %}{% if m.role == 'system' %}"
                                               "{{ raise_exception('no') }}{% endif %}{{ m.content }};{% endfor %}a:")))
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "u"}
    assert model.apply_chat_template([system, user]) == "u;a:"
    assert model.apply_chat_template([user, {"role": "assistant", "content": "x"}], False) == "u;a:x"


def test_a_grader_that_fails_is_no_zero(manager, subject, capsys):
    (task,) = load_tasks(manager, "our_answer", {}, {})
    grade = task.process_results

    def failing(document, results):
        if document["context"] == "ac is":
            raise ValueError("no such thing")
        return grade(document, results)

    task.process_results = failing
    samples = judge(task, HarnessModel(subject)).samples["our_answer"]
    assert [sample.values["exact_match,none"] for sample in samples].count(None) == 1
    assert "1 of 4 answers could not be graded (ValueError: no such thing)" in capsys.readouterr().err


def test_several_verdicts_of_a_document_are_questions_of_its_family(manager, subject):
    (task,) = load_tasks(manager, "our_answer", {}, {"metric_list": [
        {"metric": "followed", "aggregation": "mean", "higher_is_better": True}],
        "process_results": lambda document, results: {"followed": [True, False, True][: document["gold"] + 1]}})
    parts = judge(task, HarnessModel(subject)).samples["our_answer_parts"]
    assert [sample.values["followed,none"] for sample in parts] == [1, 1, 0, 1, 0, 1, 1]
    assert len({sample.question for sample in parts}) == 7
    assert len({sample.family for sample in parts}) == 2  # passages


def test_an_answer_begins_after_the_thought(manager, subject, monkeypatch):
    (task,) = load_tasks(manager, "our_answer", {}, {})
    model = HarnessModel(subject)
    monkeypatch.setattr(model, "respond", lambda requests, count: [[harness.Response("x</think>\n\na b", "stop")]
                                                                   for _ in requests])
    samples = judge(task, model).samples["our_answer"]
    assert [sample.values["exact_match,none"] for sample in samples] == [1, 0, 0, 1]
    assert samples[0].completion == "x</think>\n\na b"


@pytest.mark.parametrize(("settings", "message"), [
    ({"generation_kwargs": {"num_beams": 4}}, "asks for generation_kwargs num_beams"),
    ({"generation_kwargs": {"typical_p": 0.9}}, "asks for generation_kwargs typical_p")])
def test_what_the_engine_has_not_is_refused(manager, subject, settings, message):
    (task,) = load_tasks(manager, "our_answer", {}, settings)
    with pytest.raises(InputError, match=message):
        judge(task, HarnessModel(subject))


@pytest.mark.parametrize("settings", [
    {"doc_to_text": "{{context}}{{ 1 // (gold - 1) }}"}, {"doc_to_target": "{{ 1 // (gold - 1) }}"},
    {"filter_list": [{"name": "own", "filter": [{"function": "custom", "filter_fn": lambda *_: 1 // 0}]}]}])
def test_rows_that_a_task_cannot_ask_about_are_told(manager, subject, settings):
    """What its templates and functions make of the first row is looked at when it is loaded."""
    (task,) = load_tasks(manager, "our_answer", {}, settings)
    with pytest.raises(InputError, match=r"task our_answer: a row of its data.* will not do \(ZeroDivisionError"):
        judge(task, HarnessModel(subject))


def test_a_figure_of_all_documents_that_cannot_be_told_ends_nothing(manager, subject, capsys):
    (task,) = load_tasks(manager, "our_answer", {}, {"metric_list": [
        {"metric": "own", "aggregation": lambda items: 1 // 0, "higher_is_better": True}],
        "process_results": lambda document, results: {"own": 1.0}})
    judged = judge(task, HarnessModel(subject), limit=1)
    assert np.isnan(judged.corpus["own,none"])
    assert "our_answer: own,none of all documents together cannot be told (ZeroDivisionError" in capsys.readouterr().err
