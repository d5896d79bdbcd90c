"""lm-evaluation-harness over Temper's scorer and engine against its own backend for transformers, on the same weights:
log-likelihoods, perplexities of long texts, and greedy texts, request by request.

The tasks are written here, in lm-eval's form, over a file of questions with answers and a text. The model's context is
cut to --max-length on both sides, so that contexts are truncated and texts take several windows.
"""

import dataclasses
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks import turns
from cli.checks import check_positive
from cli.command import run

DESCRIPTION = """Temper's evaluation against lm-eval's own backend for transformers, on the same weights and requests.

  python -m benchmarks.evals_vs_hf --peer-python path/to/environment/bin/python --questions gsm8k.jsonl --text input.txt
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    peer_python: str
    """the Python of an environment with torch, transformers and lm-eval"""
    questions: str
    """a .jsonl file of rows with question and answer"""
    text: str
    """a text file"""
    count: int = 50
    """questions with four choices of each task; others have four times, or twice, as many"""
    max_length: int = 320
    """tokens that the model reads"""
    max_gen_toks: int = 32
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    peer_dtype: str | None = None
    """the peer's, where it is another: beside its float64 one sees whose rounding a difference is"""
    tasks: tuple[str, ...] = ()
    """these alone"""
    batch_size: int = 8
    model: str = "smollm2-135m-instruct"
    """any model that scripts.export can write as a Hugging Face folder"""


TASKS = {"choices": False, "choices_in_chat": True, "choices_cut": False, "without_context": False, "rolling": False,
         "answers": False, "answers_in_chat": True, "answers_cut": False}
"""task -> whether its prompts are chats"""


def main(config: Config) -> None:
    check_positive(config, "count", "max_length", "max_gen_toks", "batch_size")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(config, folder / "tasks")
        turns.run_child([sys.executable, "-m", "scripts.export", "--model", config.model, "--output",
                         str(folder / "model")], folder / "export.log")
        for dtype in config.dtypes:
            print(f"{config.peer_dtype or dtype}: lm-eval's own backend ...", flush=True)
            theirs = evaluate_theirs(config, folder, config.peer_dtype or dtype)
            print(f"{dtype}: Temper ...", flush=True)
            print_results(dtype, config.peer_dtype or dtype, evaluate_ours(config, folder, dtype), theirs)


def evaluate_theirs(config: Config, folder: Path, dtype: str) -> dict[str, Any]:
    settings = {"model": str(folder / "model"), "dtype": dtype, "batch_size": config.batch_size,
                "tasks": chosen(config), "max_length": config.max_length, "include_path": str(folder / "tasks"),
                "threads": turns.threads()}
    (folder / "settings.json").write_text(json.dumps(settings))
    worker = str(Path(__file__).with_name("lm_eval_hf_worker.py"))
    turns.run_child([config.peer_python, worker, str(folder / "settings.json"), str(folder / "theirs.json")],
                    folder / "theirs.log", HF_HUB_OFFLINE="1")
    return json.loads((folder / "theirs.json").read_text())


def evaluate_ours(config: Config, folder: Path, dtype: str) -> dict[str, Any]:
    """The same by lm-eval's own loop, over our model; and how many contexts were cut, which our loop
    tells from the same responses."""
    import jax
    from lm_eval import simple_evaluate

    from evals.cache import Cache
    from evals.harness import HarnessModel, judge
    from evals.lm_eval_tasks import load_tasks, open_manager
    from evals.subject import Subject
    from sharding.mesh import MeshConfig, make_layout

    layout = make_layout(MeshConfig(), jax.devices()[:1])
    model, variables, tokenizer = load(str(folder / "model"), layout, dtype)
    model = model.clone(config=dataclasses.replace(model.config, max_length=config.max_length))
    subject = Subject(model, tokenizer, layout, num_slots=config.batch_size, cache=Cache(folder / "responses.jsonl"))
    subject.load(variables)
    harness, found = HarnessModel(subject), {}
    manager = open_manager("", [str(folder / "tasks")])
    for name, chat in chosen(config).items():
        start = time.perf_counter()
        result = simple_evaluate(harness, tasks=[name], task_manager=manager, apply_chat_template=chat,
                                 fewshot_as_multiturn=chat, bootstrap_iters=0)
        found[name] = {"results": result["results"][name], "seconds": time.perf_counter() - start,
                       "requests": [[each["arguments"], each["resps"]] for each in result["samples"][name]]}
        (task,) = load_tasks(manager, name, {}, {})
        samples = judge(task, harness, chat=chat).samples[name]
        found[name]["cut"] = sum(sample.truncated_context for sample in samples)
    return found


def chosen(config: Config) -> dict[str, bool]:
    return {name: chat for name, chat in TASKS.items() if not config.tasks or name in config.tasks}


def load(model: str, layout: Any, dtype: str) -> tuple[Any, Any, Any]:
    from cli.online import open_tokenized

    opened, tokenizer = open_tokenized(model)
    return *opened.load(layout, dtype=dtype, param_dtype=dtype), tokenizer


# --------------------------------------------------------------------------------------------------------- the requests


def write_tasks(config: Config, folder: Path) -> None:
    """The tasks and their data."""
    folder.mkdir()
    rng = random.Random(0)
    rows = [json.loads(line) for line in Path(config.questions).read_text().split("\n")[:-1]]
    text, count = Path(config.text).read_text(), config.count
    shown = rows[-8:]
    choices = [choice_row(rng, text, words) for words in spread(count, 10, 50)]
    cut = [choice_row(rng, text, words) for words in spread(count // 5, 280, 420)]
    write(folder, "choices", choices, "multiple_choice", MULTIPLE_CHOICE | {"num_fewshot": 2}, examples=choices[:8])
    write(folder, "choices_in_chat", choices, "multiple_choice", MULTIPLE_CHOICE | {"num_fewshot": 2},
          examples=choices[:8])
    write(folder, "choices_cut", cut, "multiple_choice", MULTIPLE_CHOICE)
    pieces = [{"text": " ".join(passage(rng, text, words))} for words in spread(4 * count, 5, 40)]
    write(folder, "without_context", pieces, "loglikelihood", {"doc_to_text": "", "doc_to_target": "{{text}}",
                                                               "metric_list": [{"metric": "acc"}]})
    pieces = [{"text": " ".join(passage(rng, text, words))} for words in [*spread(4 * count - 6, 3, 60), 0, 450, 750,
                                                                          900, 250, 245]]
    write(folder, "rolling", pieces, "loglikelihood_rolling", {"doc_to_text": "", "doc_to_target": "{{text}}",
                                                               "metric_list": [{"metric": "bits_per_byte"}]})
    generation = {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "{{answer}}",
                  "generation_kwargs": {"until": ["Question:", "\n\n"], "do_sample": False,
                                        "max_gen_toks": config.max_gen_toks}}
    write(folder, "answers", rows[: 2 * count], "generate_until", generation)
    write(folder, "answers_in_chat", rows[2 * count : 4 * count], "generate_until", generation | {"num_fewshot": 1},
          examples=shown[:4])
    write(folder, "answers_cut", rows[: count // 5], "generate_until", generation | {"num_fewshot": 6}, examples=shown)


MULTIPLE_CHOICE = {"doc_to_text": "{{context}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}


def spread(count: int, least: int, most: int) -> list[int]:
    return np.linspace(least, most, count).astype(int).tolist()


def passage(rng: random.Random, text: str, words: int) -> list[str]:
    """So many words in a row, with the line ends of the text."""
    every = text.split(" ")
    start = rng.randrange(len(every) - words)
    return every[start : start + words]


def choice_row(rng: random.Random, text: str, words: int) -> dict[str, Any]:
    """A passage, how it goes on, and how three others do, in 1 to 8 words."""
    first = passage(rng, text, words + 8)
    ends = [" ".join(each[-rng.randint(1, 8) :]) for each in (passage(rng, text, 9) for _ in range(3))]
    gold = rng.randrange(4)
    ends.insert(gold, " ".join(first[words : words + rng.randint(1, 8)]))
    return {"context": " ".join(first[:words]), "choices": [each.strip() or "it" for each in ends], "gold": gold}


def write(folder: Path, name: str, rows: list[dict[str, Any]], kind: str, settings: dict[str, Any],
          examples: list[dict[str, Any]] | None = None) -> None:
    """A task file and its data."""
    files = {"test": rows} | ({"examples": examples} if examples else {})
    for split, each in files.items():
        (folder / f"{name}_{split}.json").write_text("".join(json.dumps(row) + "\n" for row in each))
    task = {"task": name, "dataset_path": "json", "output_type": kind, "test_split": "test", "dataset_kwargs": {
        "data_files": {split: str(folder / f"{name}_{split}.json") for split in files}}} | settings
    task |= {"fewshot_split": "examples"} if examples else {}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


# ------------------------------------------------------------------------------------------------------- the comparison


def requests(side: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(arguments, response) of every request of a task, in order."""
    for arguments, resps in side["requests"]:
        for argument, response in zip(arguments, resps, strict=True):
            yield argument, response[0]


def print_results(dtype: str, peer_dtype: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    table = Table("task", "requests", "cut", "largest difference", "same greedy flag or text", "figures", "theirs",
                  "seconds", "theirs", title=f"lm-eval over Temper ({dtype}), and over transformers ({peer_dtype})")
    for name in ours:
        mine, other = list(requests(ours[name])), list(requests(theirs[name]))
        if [json.dumps(argument) for argument, _ in mine] != [json.dumps(argument) for argument, _ in other]:
            sys.exit(f"{name}: the sides were not asked the same")
        pairs = [(first, second) for (_, first), (_, second) in zip(mine, other, strict=True)]
        texts = isinstance(pairs[0][0], str)
        gap = "-" if texts else f"{max(abs(number(first) - number(second)) for first, second in pairs):.2g}"
        same = sum((first == second) if texts else (flag(first) == flag(second)) for first, second in pairs)
        table.add_row(name, f"{len(pairs)}", f"{ours[name]['cut']}", gap, f"{same} of {len(pairs)}",
                      figures(ours[name]), figures(theirs[name]), f"{ours[name]['seconds']:.0f}",
                      f"{theirs[name]['seconds']:.0f}")
    Console(width=160).print(table)


def number(response: Any) -> float:
    return float(response[0] if isinstance(response, list | tuple) else response)


def flag(response: Any) -> bool:
    return str(response[1]) == "True" if isinstance(response, list | tuple) else True


def figures(side: dict[str, Any]) -> str:
    return "\n".join(f"{name.partition(',')[0]} {value:.4f}" for name, value in side["results"].items()
                     if "," in name and isinstance(value, float) and "stderr" not in name)


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
