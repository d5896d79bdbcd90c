"""The recipe of curation: a chat model learns to add and multiply from the best of its own answers, round by round."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from cli import command
from cli.checks import check_positive
from cli.flags import seed_field
from cli.parsing import from_here, invocation, parse_recipe
from data.sources import DataSource
from errors import InputError
from files import write_text
from scripts import curate, sft

DESCRIPTION = """Teach the embedded SmolLM2-135M-Instruct to add and multiply small numbers by its own best answers.

A round: the model answers each problem eight times, what a verifier finds right is kept, one answer a problem, and the
original model is fine-tuned on it with LoRA. The stages are configs/best_answers.yaml's and the training is
configs/curate.yaml's; further rounds (expert iteration) begin with the answers of the model of the last one. Problems
that the evaluation asks are left out. ROUND/data has what was kept, what was dropped and a page about it, ROUND/run the
run, which is judged before its first step and after its last one."""

STAGES, TRAINING = from_here("configs/best_answers.yaml"), from_here("configs/curate.yaml")
PROBLEMS = tuple(DataSource(f"gym:{task}(min_terms=2, max_terms=2, min_digits=1, max_digits=1, size=400, seed={seed})")
                 for task, seed in (("chain_sum", 1), ("products", 2)))


@dataclasses.dataclass(frozen=True)
class Config:
    output_dir: str = "runs/curate"
    """The rounds are written here."""
    rounds: int = 1
    """This many times the model answers and is trained."""
    stages: str = STAGES
    """This recipe is followed; its stage `sample` is given the model of the last round."""
    max_steps: int | None = None
    """A round trains for this many steps; the recipe's by default."""
    seed: int = seed_field()
    """The seed decides what is sampled, the adapter, and the order of the rows."""


def main(config: Config) -> None:
    check_positive(config, "rounds")
    model, folder = None, Path(config.output_dir)
    for number in range(1, config.rounds + 1):
        folder = Path(config.output_dir) / f"round-{number}"
        print(f"round {number} of {config.rounds}: the model answers, and its best answers are chosen", flush=True)
        stages = write_stages(folder, config.stages, model, config.seed)
        curate.main(curate.Config(PROBLEMS, str(stages), str(folder / "data")))
        print(f"round {number} of {config.rounds}: the original model learns from them", flush=True)
        train(folder, config)
        model = str(folder / "run")
    plot(folder)
    print(f"rows and answers: {folder}/data; the run: {folder}/run; a picture of both: {folder}/report.png\n"
          f"Next: {invocation('generate')} --model {folder}/run --temperature 0 --prompt "
          f"'State the final answer to the following arithmetic problem: 7 + 5 ='")


def write_stages(folder: Path, stages: str, model: str | None, seed: int) -> Path:
    """The recipe with this model and seed in its stage `sample`."""
    try:
        recipe = yaml.safe_load(Path(stages).read_text(encoding="utf-8"))
        stage = next(stage for stage in recipe["stages"] if isinstance(stage, dict) and "sample" in stage)
        stage["sample"] = {**(stage["sample"] or {}), "seed": seed} | ({"model": model} if model else {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, StopIteration):
        raise InputError(f"--stages {stages}: no recipe with a stage sample; {STAGES} is one") from None
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "stages.yaml", yaml.safe_dump(recipe, sort_keys=False, width=200))
    return folder / "stages.yaml"


def train(folder: Path, config: Config) -> Any:
    """A run on what is kept; the tables of one that was done before are shown again."""
    recipe = parse_recipe(sft.Config, TRAINING, output_dir=str(folder / "run"), max_steps=config.max_steps,
                          seed=config.seed)
    recipe = dataclasses.replace(recipe, data=(DataSource(str(folder / "data" / "kept.jsonl")),))
    tables = folder / "run" / "evals" / f"step-{recipe.max_steps:06d}" / "tables.txt"
    done = tables.exists()
    sft.main(recipe)
    if done:
        print(tables.read_text())


def plot(folder: Path) -> None:
    """report.png: the rows that each stage left, and right answers before and after, with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = json.loads((folder / "data" / "counts.json").read_text())["stages"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    rows = [sum(stages[0]["read"].values()), *(sum(stage["kept"].values()) for stage in stages)]
    bars = left.barh(["read", *(stage["stage"] for stage in stages)], rows, color="tab:gray")
    left.bar_label(bars, padding=3)
    left.invert_yaxis()
    left.set(xlabel="rows behind each stage", xlim=(0, 1.15 * max(rows)))
    evaluations = sorted((folder / "run" / "evals").glob("step-*"))
    for number, (when, path) in enumerate((("before", evaluations[0]), ("after", evaluations[-1]))):
        draw_figures(right, path, when, 0.38 * number)
    right.set(ylabel="right answers, 95 % intervals", ylim=(0, 1.02))
    right.legend(loc="upper left")
    figure.tight_layout()
    figure.savefig(folder / "report.png", dpi=120)
    pyplot.close(figure)


def draw_figures(axes: Any, evaluation: Path, when: str, shift: float) -> None:
    """Bars of the first metric of each task."""
    from evals.figures import figures_of
    from evals.results import read_evaluation

    tasks = {task: figures_of(samples)[0].estimate for task, samples in read_evaluation(evaluation).items()}
    places = [number + shift for number in range(len(tasks))]
    means = [each.mean for each in tasks.values()]
    errors = [[each.mean - each.low for each in tasks.values()], [each.high - each.mean for each in tasks.values()]]
    axes.bar(places, means, width=0.36, yerr=errors, capsize=4, label=when)
    axes.set_xticks([number + 0.19 for number in range(len(tasks))], [task.split(":")[1] for task in tasks])


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
