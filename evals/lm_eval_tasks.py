"""lm-evaluation-harness's tasks by name: found, given local data or other settings, and loaded with what they need.

Nothing else imports lm-eval but harness.py; both are imported where a task of it is asked for.
"""

import contextlib
import difflib
import importlib.util
import io
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError
from evals.named import NAMED
from sharding.hosts import warn

INSTALL = "pip install -r requirements-evals.txt"
SEEDS = (0, 1234)
"""lm-eval's, of Python's random numbers and numpy's, which some tasks order their choices by, and of its examples: the
same whatever --seed, so that two evaluations ask the same"""
FORMATS = {".jsonl": "json", ".json": "json", ".gz": "json", ".csv": "csv", ".parquet": "parquet"}
SPLITS = ("test_split", "validation_split")
EXAMPLES = ("fewshot_split", "training_split")
OF_GROUPS = ("task", "group", "group_alias", "task_alias", "tag", "aggregate_metric_list", "metadata", "include")
"""keys of a group, and of its members, that are no settings of tasks"""


@contextlib.contextmanager
def seeded(task: Any) -> Iterator[None]:
    """A block in which a task draws choices and examples from the beginning: each time that it asks, it asks the same.
    What others draw goes on behind the block as if it had not been."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what tasks draw from
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])  # noqa: NPY002
    task.set_fewshot_seed(seed=SEEDS[1])
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def open_manager(name: str, include_path: Sequence[str] = ()) -> Any:
    """lm-eval's TaskManager. Raises InputError where it is not installed, which task `name` needs, and where an
    `include_path` is no folder."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the building of prompts
    os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")  # metrics that are code of the Hub's, which evaluate.load runs
    try:
        import datasets
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        close = [] if name in NAMED else nearest(name, list(NAMED))
        meant = f"no task {name!r} here; did you mean {' or '.join(close)}? lm-eval" if close else (
            f"task {name} is of lm-eval, which")
        raise InputError(f"{meant} cannot be imported ({error}); {INSTALL}") from None
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for path in include_path:
        if not Path(path).is_dir():
            raise InputError(f"--include-path {path}: no such folder; give one with task files (.yaml)")
        _tell_broken(Path(path))
    return TaskManager(include_path=list(include_path) or None)


def _tell_broken(folder: Path) -> None:
    """A line for each file that lm-eval would leave out without a word."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for file in sorted(folder.glob("**/*.yaml")):
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a file of anybody's
            warn(f"--include-path {file}: left out, no task file can be read from it ({_line(error)})")


def known_names(manager: Any) -> list[str]:
    return list(manager.all_tasks)


def load_tasks(manager: Any, name: str, data: Mapping[str, str], settings: Mapping[str, Any],
               called: str | None = None) -> list[Any]:
    """The tasks behind a name, of a group all of its members, with other `settings` than their YAML has. `data`: split
    ("" for the one that is judged) -> file. Raises InputError, which names the task as it was `called`, where the data
    cannot be had, or anything is missing that the task needs."""
    members, called = leaves(manager, name), called or name
    for leaf in members:
        _check_kind(leaf, _config(manager, leaf))
        prepare_nltk(leaf)
    with_others = [{"task": leaf} | own | dict(settings) | (
        local_data(called, _config(manager, leaf), data, settings) if data else {}) for leaf, own in members.items()]
    wanted = [{"group": f"of {name}", "task": with_others}] if data or settings else [name]
    loaded = _load(manager, called, wanted, data, list(members))
    for task in loaded:
        _check_metrics(called, task)
        if task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEEDS[1])
    return loaded


def leaves(manager: Any, name: str) -> dict[str, dict[str, Any]]:
    """The tasks that a name stands for, and what a group says of them besides."""
    entry = manager.task_index.get(name)
    kind = entry.kind.name if entry else ""
    if kind == "TAG":
        return {leaf: {} for leaf in sorted(entry.tags)}
    return _leaves_of(manager, entry.cfg) if kind == "GROUP" else {name: {}} if entry else {}


def _leaves_of(manager: Any, group: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of a group's members: names, names with settings, and groups within it."""
    common, found = _settings_in(group), {}
    for each in group["task"]:
        member = {"task": each} if isinstance(each, str) else each
        name = member.get("task", member.get("group"))
        inner = _leaves_of(manager, member) if isinstance(name, list) else leaves(manager, name)
        found |= {leaf: common | own | _settings_in(member) for leaf, own in inner.items()}
    return found


def _settings_in(member: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in member.items() if key not in OF_GROUPS}


def _config(manager: Any, name: str) -> Mapping[str, Any]:
    return manager.task_index[name].cfg or {}


def _load(manager: Any, name: str, wanted: Sequence[Any], data: Mapping[str, str], members: Sequence[str],
          ) -> list[Any]:
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])  # noqa: NPY002 - what tasks draw from
    hub = ", ".join(dict.fromkeys(str(_config(manager, leaf).get("dataset_path")) for leaf in members))
    try:
        return list(manager.load(list(wanted))["tasks"].values())
    except (ImportError, AssertionError) as error:
        raise InputError(f"task {name} needs what is not installed ({_line(error)}); {INSTALL}, or what its README in "
                         f"lm_eval/tasks names") from None
    except Exception as error:  # noqa: BLE001 - whatever a task's own code raises on data that are not what it expects
        reason = f"{type(error).__name__}: {_line(error)}"
        raise InputError(f"task {name}: {', '.join(data.values())} does not fit it ({reason}); rows must have the "
                         f"columns of {hub} on the Hub" if data else
                         f"task {name}: its data ({hub} on the Hub) cannot be had ({reason}); fetch it where the Hub "
                         f"can be reached, or give --task-data {name}=FILE") from None


def is_mean_of_questions(manager: Any, name: str) -> bool:
    """Whether a name is a group whose figure is that of all its questions together."""
    entry = manager.task_index[name]
    metrics = (entry.cfg or {}).get("aggregate_metric_list") if entry.kind.name == "GROUP" else None
    metrics = [metrics] if isinstance(metrics, dict) else metrics
    return bool(metrics) and all(each.get("weight_by_size", True) for each in metrics)


def _check_kind(name: str, config: Mapping[str, Any]) -> None:
    if config.get("unsafe_code"):
        raise InputError(f"task {name} runs what the model wrote beside the evaluation; humaneval, humaneval+, mbpp "
                         f"and mbpp+, by these names, are run in the sandbox, and so is code:FILE")
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise InputError(f"task {name} shows pictures or plays sounds, and models are of text here; leave it out")


def _check_metrics(name: str, task: Any) -> None:
    """Raises InputError for metrics and aggregations that lm-eval has not, and the task does not bring."""
    metrics = {} if task.config.process_results is not None else getattr(task, "_metric_fn_list", {})
    for kind, found in (("a metric", metrics), ("an aggregation of", task.aggregation())):
        wrong = next((metric for metric, function in found.items() if function is None), None)
        if wrong is not None:
            raise InputError(f"task {name} has {kind} {wrong!r} that lm-eval has not; mend the name (metrics that "
                             f"are code of the Hub's are fetched and run with HF_EVALUATE_OFFLINE=0 only)")


def local_data(name: str, config: Mapping[str, Any], data: Mapping[str, str], settings: Mapping[str, Any],
               ) -> dict[str, Any]:
    """What a task's YAML has in place of its data set: files by split. Raises InputError for files of no known kind,
    and where its examples lack one."""
    judged = next((config[split] for split in SPLITS if config.get(split)), "test")
    files = {split or judged: str(Path(path).resolve()) for split, path in data.items()}
    kinds = {FORMATS.get(Path(path).suffix) for path in files.values()}
    if len(kinds) > 1 or None in kinds:
        raise InputError(f"--task-data {name}: {', '.join(data.values())} must be files of one kind: .jsonl, .json, "
                         f".jsonl.gz, .csv or .parquet")
    examples = next((config[split] for split in EXAMPLES if config.get(split)), None)
    shots = settings.get("num_fewshot", config.get("num_fewshot")) or 0
    samples = (config.get("fewshot_config") or {}).get("samples")
    if shots and examples and examples not in files and not samples:
        raise InputError(f"task {name} shows {shots} examples from its split {examples}; give --task-data "
                         f"{name}:{examples}=FILE, too, or --num-fewshot 0")
    missing = {split: None for split in (*SPLITS, *EXAMPLES) if config.get(split) not in (None, *files)}
    return {"dataset_path": kinds.pop(), "dataset_name": None, "dataset_kwargs": {"data_files": files}} | missing


def prepare_nltk(name: str) -> None:
    """Lets ifeval find nltk's punkt_tab where a distribution carries it. Raises InputError where none does, and it
    cannot be fetched either."""
    if "ifeval" not in name or not importlib.util.find_spec("nltk"):
        return
    import nltk

    carried = importlib.util.find_spec("llama_index")
    for folder in carried.submodule_search_locations or () if carried else ():
        nltk.data.path.append(str(Path(folder, "core", "_static", "nltk_cache")))
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        with contextlib.redirect_stderr(io.StringIO()):
            fetched = nltk.download("punkt_tab", quiet=True)
        if not fetched:
            raise InputError(f"task {name} needs nltk's punkt_tab, which is not here and cannot be fetched; pip "
                             f"install --no-deps llama-index-core, which carries it, or set NLTK_DATA") from None


def nearest(name: str, names: Sequence[str]) -> list[str]:
    """Names that may have been meant."""
    return difflib.get_close_matches(name, names, n=3, cutoff=0.5)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
