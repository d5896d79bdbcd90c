"""lm-eval's tasks by name: local data, groups and tags, what is refused; without lm-eval, what can be without it."""

import json

import pytest
import yaml

from errors import InputError
from evals.lm_eval_tasks import local_data, nearest

CONFIG = {"test_split": "test", "fewshot_split": "train", "training_split": "train", "num_fewshot": 5}


def test_files_take_the_place_of_a_data_set(tmp_path):
    found = local_data("gsm8k", CONFIG, {"": "a.jsonl", "train": "b.jsonl"}, {})
    assert found["dataset_path"] == "json"
    assert {split: name.rpartition("/")[2] for split, name in found["dataset_kwargs"]["data_files"].items()} == {
        "test": "a.jsonl", "train": "b.jsonl"}
    assert "fewshot_split" not in found
    alone = local_data("gsm8k", CONFIG, {"": "a.csv"}, {"num_fewshot": 0})
    assert alone["dataset_path"] == "csv"
    assert alone["fewshot_split"] is alone["training_split"] is None  # there is none to be looked for


@pytest.mark.parametrize(("data", "message"), [
    ({"": "a.jsonl"}, "gsm8k shows 5 examples from its split train; give --task-data gsm8k:train=FILE"),
    ({"": "a.txt"}, "must be files of one kind"), ({"": "a.jsonl", "train": "b.csv"}, "must be files of one kind")])
def test_files_that_will_not_do_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        local_data("gsm8k", CONFIG, data, {})


def test_names_that_may_have_been_meant():
    assert nearest("gsm8kk", ["gsm8k", "ifeval"]) == ["gsm8k"]
    assert nearest("xyz", ["gsm8k", "ifeval"]) == []


def test_lm_eval_is_asked_for_where_it_is_missing(monkeypatch):
    from evals import lm_eval_tasks

    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match="task ifeval is of lm-eval, which cannot be imported.*requirements-evals"):
        lm_eval_tasks.open_manager("ifeval")
    with pytest.raises(InputError, match=r"no task 'humanevl' here; did you mean humaneval or humaneval\+\?"):
        lm_eval_tasks.open_manager("humanevl")


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    pytest.importorskip("lm_eval")
    from evals.lm_eval_tasks import open_manager

    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    task = {"dataset_path": "json", "output_type": "loglikelihood", "doc_to_text": "", "doc_to_target": "{{text}}",
            "test_split": "test", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    files = {"one": {"task": "our_one", "tag": "our_tag"} | task, "two": {"task": "our_two", "tag": "our_tag"} | task,
             "unsafe": {"task": "our_unsafe", "unsafe_code": True} | task,
             "group": {"group": "our_group", "task": ["our_tag"], "aggregate_metric_list": [{"metric": "acc"}]},
             "nest": {"group": "our_nest", "task": [{"task": "our_one", "target_delimiter": "?"},
                                                    {"group": "inner", "task": ["our_two"]}]},
             "macro": {"group": "our_macro", "task": ["our_one", "our_two"],
                       "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}]}}
    for name, each in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(each))
    return open_manager("our_one", [str(folder)])


def test_groups_and_tags_are_their_tasks(manager):
    from evals.lm_eval_tasks import is_mean_of_questions, leaves, load_tasks

    for name in ("our_tag", "our_group", "our_macro"):
        assert list(leaves(manager, name)) == ["our_one", "our_two"]
        assert [task.config.task for task in load_tasks(manager, name, {}, {})] == ["our_one", "our_two"]
    assert leaves(manager, "our_nest") == {"our_one": {"target_delimiter": "?"}, "our_two": {}}
    assert [task.config.target_delimiter for task in load_tasks(manager, "our_nest", {}, {})] == ["?", " "]
    assert [is_mean_of_questions(manager, name) for name in ("our_group", "our_macro", "our_tag", "our_one")] == [
        True, False, False, False]


def test_settings_and_files_reach_the_tasks_of_a_group(manager, tmp_path):
    from evals.lm_eval_tasks import load_tasks

    (tmp_path / "other.jsonl").write_text('{"text": "b"}\n{"text": "c"}\n')
    tasks = load_tasks(manager, "our_group", {"": str(tmp_path / "other.jsonl")}, {"target_delimiter": "!"})
    for task in tasks:
        assert [document["text"] for document in task.eval_docs] == ["b", "c"]
        assert task.config.target_delimiter == "!"


def test_tasks_that_run_code_and_data_that_do_not_fit_are_refused(manager, tmp_path):
    from evals.lm_eval_tasks import load_tasks

    with pytest.raises(InputError, match="our_unsafe runs what the model wrote beside the evaluation; humaneval"):
        load_tasks(manager, "our_unsafe", {}, {})
    (tmp_path / "other.jsonl").write_text("no JSON\n")
    with pytest.raises(InputError, match="task ours: .*other.jsonl does not fit it"):
        load_tasks(manager, "our_one", {"": str(tmp_path / "other.jsonl")}, {}, "ours")


@pytest.mark.parametrize(("metric", "message"), [
    ({"metric": "bleurt", "aggregation": "mean"}, "task ours has a metric 'bleurt' that lm-eval has not"),
    ({"metric": "exact_match", "hf_evaluate": True, "aggregation": "mean"}, "a metric 'exact_match' that"),
    ({"metric": "acc", "aggregation": "meen"}, "task ours has an aggregation of 'acc' that lm-eval has not")])
def test_no_metric_is_fetched_as_code(manager, metric, message):
    import evaluate

    from evals.lm_eval_tasks import load_tasks

    assert evaluate.config.HF_EVALUATE_OFFLINE
    with pytest.raises(InputError, match=message):
        load_tasks(manager, "our_one", {}, {"metric_list": [metric | {"higher_is_better": True}]}, "ours")


def test_files_that_are_left_out_are_told_and_no_function_is_run(tmp_path, capsys):
    pytest.importorskip("lm_eval")
    from evals.lm_eval_tasks import _tell_broken

    (tmp_path / "run.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')")
    texts = {"broken": "task: [", "list": "- a", "lost": "include: nowhere.yaml", "tag": "task: !!python/name:os.x",
             "own": "task: own\ndoc_to_text: !function run.text"}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    _tell_broken(tmp_path)
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(".yaml")[0].rpartition("/")[2] for line in told] == ["broken", "list", "lost", "tag"]
    assert not (tmp_path / "was run").exists()


def test_a_remedy_names_the_task_as_it_was_called(manager):
    """A group's members have no data of their own."""
    from evals.lm_eval_tasks import load_tasks

    manager.task_index["our_one"].cfg.update(fewshot_split="train", num_fewshot=1)
    try:
        with pytest.raises(InputError, match="give --task-data our_group:train=FILE"):
            load_tasks(manager, "our_group", {"": "other.jsonl"}, {})
    finally:
        for name in ("fewshot_split", "num_fewshot"):
            del manager.task_index["our_one"].cfg[name]
