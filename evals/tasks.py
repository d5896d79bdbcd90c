"""Which tasks there are and how each is run: lm-eval's by its harness, others by graders of our own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import InputError
from evals.samples import Sample
from evals.subject import Subject

INSTALL = "pip install -r requirements-evals.txt"


def evaluate(subject: Subject, names: Sequence[str], *, limit: int | None = None, num_samples: int = 1, seed: int = 0,
             temperature: float | None = None, max_new_tokens: int | None = None, chat: bool | None = None,
             include_path: Sequence[str] = (), task_data: Mapping[str, str] | None = None,
             done: Callable[[str, list[Sample]], None] = lambda task, samples: None) -> dict[str, list[Sample]]:
    """The samples of every task; `done` is told of each as soon as it has been run."""
    from evals.harness import Generation, HarnessModel, judge

    tasks = load_tasks(names, include_path, task_data or {})
    model = HarnessModel(subject, Generation(max_new_tokens, temperature, seed, num_samples))
    found = {}
    for task in tasks:
        found[task.config.task] = judge(task, model, limit, bool(subject.tokenizer.chat_template))
        done(task.config.task, found[task.config.task])
    return found


def load_tasks(names: Sequence[str], include_path: Sequence[str], task_data: Mapping[str, str]) -> list[Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=list(include_path) or None)
    return list(manager.load([_spec(manager, name, task_data.get(name)) for name in names])["tasks"].values())


def _spec(manager: Any, name: str, data: str | None) -> Any:
    if data is None:
        return name
    if not Path(data).exists():
        raise InputError(f"--task-data {name}={data}: no such file")
    config = manager.task_index[name].cfg
    splits = {config[key] for key in ("test_split", "validation_split") if config.get(key)}
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {
        "data_files": dict.fromkeys(splits, str(Path(data).resolve()))}}
    return {"group": f"{name} from {data}", "task": [{"task": name, **local}]}
