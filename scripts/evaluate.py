"""A model judged by benchmarks, and by any prompts with any rewards: figures with intervals, and every answer on file.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cli import command
from cli.checks import check_positive, check_seed, compute_in, resolve_dtype
from cli.flags import SamplingMeshFlags, seed_field
from errors import InputError, shown
from files import only_one
from sharding.hosts import HostsConfig
from sharding.settings import MeshConfig

DESCRIPTION = """Judge a model.

  python -m scripts.evaluate --model smollm2-135m-instruct --tasks ifeval,humaneval --output-dir evals/smollm2
  python -m scripts.evaluate --model runs/mine --tasks "gym:chain_sum,math:questions.jsonl" --output-dir evals/mine \\
      --baseline evals/smollm2
  python -m scripts.evaluate --list

Tasks are benchmarks by name (--list), lm-evaluation-harness's by its names (pip install -r requirements-evals.txt),
and your own: math:FILE, code:FILE, gym:TASK(...) and REWARDS:FILE (docs/evaluation.md).

Ended, by whatever, it goes on where it was when the same command is given again."""

AFTER_LIST = """
Minutes are estimates for SmolLM2-135M-Instruct on two cores. lm-eval, and what its tasks need: pip install -r
requirements-evals.txt. Data come from the Hub, or from a file by --task-data NAME=FILE. All other tasks of lm-eval go
by its names (lm-eval ls tasks), yours in its form by --include-path FOLDER, and any prompts with any rewards by
math:FILE, code:FILE, gym:TASK(...) and REWARDS:FILE."""


MAY_DIFFER = ("tasks", "baseline", "task_data", "include_path", "num_slots", "sampling", "mesh",
              "unsafe_code_without_sandbox")
"""flags of an evaluation that others of the same folder need not have"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: str | None = None
    """This model is judged: embedded (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT adapter, run
    directory (RUN@best and RUN@STEP are one of its checkpoints, RUN@all all of them, each in a folder of its own), or
    http://HOST:PORT/v1, a server with OpenAI's interface, for lm-eval's tasks."""
    tasks: str | None = None
    """It is judged by these tasks, NAME[,...]."""
    output_dir: str | None = None
    """What is found is written here: results.json, samples_TASK.jsonl, and responses.jsonl, with which the same command
    goes on."""
    list: bool = False
    """The benchmarks that go by name are listed: what each measures, where its data come from, what it needs."""
    baseline: str | None = None
    """This folder has an evaluation of another model on the same questions, which is compared in pairs."""
    limit: int | None = None
    """Each task has its first so many questions; by default all."""
    num_samples: int | None = None
    """Each question is answered this many times, for avg@k, pass@k and the like; by default once, or as often as a task
    of lm-eval's says."""
    temperature: float | None = None
    """Answers are drawn at this temperature; by default as each task says, mostly at 0, or at 1 for --num-samples above
    1."""
    max_new_tokens: int | None = None
    """An answer has this many tokens at the most; by default as many as each task says."""
    num_fewshot: int | None = None
    """Prompts of lm-eval's tasks show this many examples; by default as many as each task says."""
    chat: Literal["auto", "always", "never"] = "auto"
    """Prompts are chats where answers are written and the model has a chat template (auto), always, or never."""
    chat_template_kwargs: str | None = None
    """The chat template gets these besides, such as "{enable_thinking: false}"."""
    task_data: tuple[str, ...] = ()
    """NAME=FILE takes a task's questions from a file (.jsonl, .parquet; those of lm-eval's tasks .csv and .json, too)
    instead of the Hub, NAME:SPLIT=FILE its examples."""
    include_path: tuple[str, ...] = ()
    """These folders have further tasks in lm-eval's form (.yaml)."""
    seed: int = seed_field()
    """What is drawn follows from the seed; the questions and their examples do not."""
    num_slots: int = 64
    """At most this many answers are decoded at a time."""
    unsafe_code_without_sandbox: bool = False
    """The answers' code runs where this machine cannot isolate it: it may do whatever you may do."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Matmuls are computed in this type; auto is what is fastest here, on CPUs as measured at the first start."""
    sampling: SamplingMeshFlags = SamplingMeshFlags()
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()


def main(config: Config) -> None:
    from cli.online import open_tokenized
    from evals.results import read_evaluation
    from evals.tables import print_series
    from evals.tasks import Server, open_tasks, split_names
    from sharding.hosts import connect, is_main
    from sharding.mesh import make_layout
    from training.runs import every_checkpoint

    if config.list:
        print_list()
        return
    check(config)
    connect(config.hosts)
    config = dataclasses.replace(config, dtype=compute_in(resolve_dtype(config.dtype)))
    layout, folder, models = make_layout(config.mesh), Path(config.output_dir), every_checkpoint(config.model)
    baseline = read_evaluation(Path(config.baseline)) if config.baseline else {}
    if is_url(config.model):
        tokenizer, vocab_size = Server(config.model), 0
    else:
        opened, tokenizer = open_tokenized(next(iter(models.values())))
        vocab_size = opened.config.vocab_size
    tasks = open_tasks(split_names(config.tasks), tokenizer, make_how(config), vocab_size, layout)

    evaluations = {}
    for name, model in models.items():
        own = dataclasses.replace(config, model=model, output_dir=str(folder / name))
        evaluations[name] = judge(own, tasks, tokenizer, layout, baseline)
    if len(models) > 1 and is_main():
        print_series(evaluations, f"all checkpoints of {config.model.removesuffix('@all')}")
    command.print_once(f"evaluated: {folder}")


def judge(config: Config, tasks: Sequence[Any], tokenizer: Any, layout: Any,
          baseline: dict[str, Any]) -> dict[str, Any]:
    """The samples of every task; figures are printed, and written, as soon as a task is over."""
    from sharding.hosts import is_main

    with only_one(Path(config.output_dir)) if is_main() else contextlib.nullcontext():
        return run_tasks(config, tasks, tokenizer, layout, baseline)


def run_tasks(config: Config, tasks: Sequence[Any], tokenizer: Any, layout: Any, baseline: dict[str, Any],
              ) -> dict[str, Any]:
    """What judge says, in a folder that no other process writes to."""
    from evals.tables import print_figures
    from sharding.hosts import is_main

    folder = Path(config.output_dir)
    subject, weights = open_subject(config, tokenizer, layout)
    described = describe(config, weights)
    evaluated, now = read_earlier(folder, described), {}
    for task in tasks:
        start = time.monotonic()
        found = task.run(subject)
        evaluated, now = evaluated | found, now | found
        if is_main():
            print_figures(found, f"{config.model}, {(time.monotonic() - start) / 60:.1f} minutes")
            write(folder, evaluated, described)
    if baseline and is_main():
        compare_with(config.baseline, baseline, folder, evaluated, described)
    return now


def open_subject(config: Config, tokenizer: Any, layout: Any) -> tuple[Any, str]:
    """(what is judged, a digest of its weights); of a server's the name of its model."""
    from evals.cache import Cache
    from evals.subject import Subject
    from training.progress import counted
    from training.runs import open_policy

    cache = Cache(Path(config.output_dir) / "responses.jsonl")
    if is_url(config.model):
        from evals.remote import served_model

        cache.weights = served_model(config.model)
        return dataclasses.replace(tokenizer, name=cache.weights, cache=cache), cache.weights
    model, variables = open_policy(config.model).load(layout, dtype=config.dtype, param_dtype=config.dtype)
    subject = Subject(model, tokenizer, layout, None, config.num_slots, config.sampling.mesh,
                      cache, counted)
    subject.load(variables)
    return subject, subject.cache.weights


def is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def make_how(config: Config) -> Any:
    """What the flags say of running tasks. Raises InputError for --task-data of another form."""
    from data.messages import parse_template_kwargs
    from evals.tasks import How, parse_task_data

    data = parse_task_data(config.task_data, "--task-data")
    return How(config.limit, config.num_samples, config.seed, config.temperature, config.max_new_tokens,
               config.num_fewshot, config.chat, parse_template_kwargs(config.chat_template_kwargs), data,
               config.include_path, config.unsafe_code_without_sandbox, config.dtype)


def describe(config: Config, weights: str) -> dict[str, Any]:
    """What was evaluated and how: all flags but where it ran, and a digest of the weights."""
    from training.runs import absolute_reference

    flags = dataclasses.asdict(config) | {"model": absolute_reference(config.model), "weights": weights}
    return {name: value for name, value in flags.items() if name not in ("list", "hosts", "output_dir")}


def read_earlier(folder: Path, described: dict[str, Any]) -> dict[str, Any]:
    """Samples of tasks that the folder has already, run in the same way. Raises InputError for those of another."""
    from evals.results import read_evaluation

    if not (folder / "results.json").exists():
        return {}
    there = read_flags(folder / "results.json")
    now = json.loads(json.dumps(described))
    differing = next((name for name in now if name not in MAY_DIFFER and there.get(name) != now[name]), None)
    if differing:
        raise InputError(f"--output-dir {folder} holds another evaluation ({differing}: {shown(there.get(differing))} "
                         f"there, {shown(now[differing])} now); choose another")
    return read_evaluation(folder)


def read_flags(path: Path) -> dict[str, Any]:
    """The flags of an evaluation. Raises InputError for a file that is none of one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: does not say of what evaluation it is ({type(error).__name__}: {error}); choose "
                         f"another --output-dir, or remove it") from None


def write(folder: Path, evaluated: dict[str, Any], described: dict[str, Any], compared: Sequence[Any] = ()) -> None:
    """All that has been found so far; a figure of all questions in the form of the Hub's leaderboards, too."""
    from evals.named import BENCHMARKS
    from evals.results import write_evaluation

    write_evaluation(folder, evaluated, described, compared, None if described["limit"] else BENCHMARKS)


def compare_with(name: str, baseline: dict[str, Any], folder: Path, evaluated: dict[str, Any],
                 described: dict[str, Any]) -> None:
    """Prints and writes the comparison with --baseline. Raises InputError where its questions are others."""
    from evals.comparison import compare
    from evals.tables import print_comparison

    compared = compare(baseline, evaluated, (f"--baseline {name}", "this evaluation"))
    print_comparison(compared, names=("baseline", "this"))
    write(folder, evaluated, described, compared)


def print_list() -> None:
    """Two lines for each benchmark that goes by name."""
    from evals.named import NAMED

    for name, each in NAMED.items():
        by = f"lm-eval's {each.task}" if each.task else f"our own words and {each.rewards}"
        print(f"{name:<11} {each.measures}; {each.questions:,} questions, {each.minutes} minutes\n"
              f"{'':<11} by {by}; data hf:{each.data} ({each.licence}); needs {each.needs}")
    print(AFTER_LIST)


def check(config: Config) -> None:
    """Raises InputError for flags that are missing or make no sense."""
    for name in ("model", "tasks", "output_dir"):
        if getattr(config, name) is None:
            raise InputError(f"--{name.replace('_', '-')} is missing; --help explains the flags")
    given = ("limit", "num_samples", "max_new_tokens")
    check_positive(config, "num_slots", *(name for name in given if getattr(config, name) is not None))
    check_seed(config.seed)
    if (config.num_fewshot or 0) < 0:
        raise InputError(f"--num-fewshot {config.num_fewshot}: give 0 or more")
    if (config.num_samples or 1) > 1 and config.temperature is not None and not config.temperature > 0:
        raise InputError(f"--num-samples {config.num_samples} at --temperature {config.temperature:g} would be the same"
                         f" answer each time; give a temperature above 0")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
