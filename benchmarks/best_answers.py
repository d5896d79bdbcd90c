"""What curation is worth on SmolLM2's arithmetic: best of K against first answers, expert iteration, distillation."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from cli import command
from errors import InputError
from files import write_text
from scripts.expert_iteration import PROBLEMS, STAGES, TRAINING, write_stages

DESCRIPTION = """Measure what curation gains: SmolLM2-135M-Instruct on sums and products, judged on held-out problems.

  python -m benchmarks.best_answers --experiment best_of        # the best of 8 answers against the first, as many rows
  python -m benchmarks.best_answers --experiment rounds         # two rounds of expert iteration beside GRPO
  python -m benchmarks.best_answers --experiment distillation   # GRPO's model teaches the original by its answers

Figures are greedy answers to the same problems, compared in pairs; those of several seeds are averaged by problem.
Stopped, by whatever, it goes on where it was when the same command is given again."""

GRPO = "configs/arithmetic.yaml"
PER_STEP = 64
"""completions of a step of GRPO"""
TEACHER_STEPS = 20
"""of GRPO, after which it teaches"""


@dataclasses.dataclass(frozen=True)
class Config:
    experiment: Literal["best_of", "rounds", "distillation"]
    """This is measured."""
    output_dir: str = "runs/best_answers"
    """Rows and runs are made here, and the table, EXPERIMENT.txt."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each side is sampled and trained with these seeds."""
    max_steps: int = 40
    """Fine-tuning takes this many steps of 8 rows."""


def main(config: Config) -> None:
    measure = {"best_of": best_of, "rounds": rounds, "distillation": distillation}[config.experiment]
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    measure(config, folder)


def best_of(config: Config, folder: Path) -> None:
    """The same prompts, answers, numbers of rows and steps; what differs is which answer of a prompt is trained on."""
    chosen = {"best": {"best_of": {"keep": 1}},
              "first": {"rejection_sampling": {"threshold": -1.0, "order": "first", "max_per_prompt": 1}}}
    runs: dict[str, list[Path]] = {"best": [], "first": []}
    for seed in config.seeds:
        for name, stage in chosen.items():
            data = folder / f"{name}-{seed}"
            if name == "first" and not (data / "cache").exists():
                shutil.copytree(folder / f"best-{seed}" / "cache", data / "cache")
            curate(data, stages(stage), seed)
            runs[name].append(fine_tune(data / "run", data / "kept.jsonl", seed, config.max_steps))
        check_same_prompts(folder, seed)
    steps = f"step-{config.max_steps:06d}"
    report(folder / "best_of.txt", [
        ("first answers", [(run, "step-000000") for run in runs["first"]], [(run, steps) for run in runs["first"]]),
        ("best of 8", [(run, "step-000000") for run in runs["best"]], [(run, steps) for run in runs["best"]]),
        ("best of 8 over first answers", [(run, steps) for run in runs["first"]],
         [(run, steps) for run in runs["best"]])])


def rounds(config: Config, folder: Path) -> None:
    """Both sample as many tokens, within a step of GRPO, whose answers become shorter as it learns to end them."""
    lines, last = [], f"step-{config.max_steps:06d}"
    expert, grpo, tokens = [], [], []
    for seed in config.seeds:
        own = folder / f"expert-{seed}"
        start("scripts.expert_iteration", "--output-dir", own, "--rounds", 2, "--seed", seed, "--max-steps",
              config.max_steps)
        answers = [answer for number in (1, 2) for answer in read_answers(own / f"round-{number}" / "data")]
        expert.append(own / "round-2" / "run")
        sampled = sum(answer["usage"][1] for answer in answers)
        steps, run = train_grpo_on(sampled, folder, seed, round(len(answers) / PER_STEP))
        grpo.append((run, f"step-{steps:06d}"))
        tokens.append((sampled, grpo_tokens(run)))
    lines.append("sampled tokens by seed, expert iteration and GRPO: " + "; ".join(f"{a} and {b}" for a, b in tokens))
    report(folder / "rounds.txt", [
        ("expert iteration, round 1", [(run.parents[1] / "round-1/run", "step-000000") for run in expert],
         [(run.parents[1] / "round-1/run", last) for run in expert]),
        ("expert iteration, round 2", [(run, "step-000000") for run in expert], [(run, last) for run in expert]),
        ("GRPO", [(run, "step-000000") for run, _ in grpo], grpo),
        ("GRPO over expert iteration", [(run, last) for run in expert], grpo)], lines)


def distillation(config: Config, folder: Path) -> None:
    """The student sees the teacher's answers alone, two to a problem, right or wrong."""
    last = f"step-{config.max_steps:06d}"
    students, teachers = [], []
    for seed in config.seeds:
        teacher = train_grpo(folder / f"teacher-{seed}", seed, TEACHER_STEPS)
        teachers.append((teacher, f"step-{TEACHER_STEPS:06d}"))
        data = folder / f"taught-{seed}"
        curate(data, stages({"best_of": {"keep": 2}}, num_samples=2), seed, str(teacher))
        students.append(fine_tune(data / "run", data / "kept.jsonl", seed, config.max_steps))
    before, after = ([(run, step) for run in students] for step in ("step-000000", last))
    report(folder / "distillation.txt", [("student", before, after), ("teacher", before, teachers),
                                         ("teacher over student", after, teachers)])


# ------------------------------------------------------------------------------------------------ the parts


def stages(choose: dict[str, Any], **sample: Any) -> dict[str, Any]:
    """The recipe of make curate with another choice."""
    recipe = yaml.safe_load(Path(STAGES).read_text())
    for stage in recipe["stages"]:
        stage.get("sample", {}).update(sample)
    recipe["stages"] = [choose if "rejection_sampling" in stage else stage for stage in recipe["stages"]]
    recipe["max_removal"].pop("rejection_sampling")
    return recipe


def curate(data: Path, recipe: dict[str, Any], seed: int, model: str | None = None) -> None:
    data.mkdir(parents=True, exist_ok=True)
    write_text(data / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, width=200))
    written = write_stages(data, str(data / "recipe.yaml"), model, seed)
    start("scripts.curate", "--data", *(each.source for each in PROBLEMS), "--stages", written, "--output-dir", data)


def fine_tune(run: Path, rows: Path, seed: int, max_steps: int) -> Path:
    start("scripts.sft", "--config", TRAINING, "--data", rows, "--output-dir", run, "--seed", seed, "--max-steps",
          max_steps)
    return run


def train_grpo_on(tokens: int, folder: Path, seed: int, steps: int) -> tuple[int, Path]:
    """(steps, run) that sample so many tokens: `steps` to begin with, and then as many more as are missing."""
    from training.checkpoints import finished_steps

    run = folder / f"grpo-{seed}"
    steps = max([steps, *finished_steps(run / "checkpoints")])
    train_grpo(run, seed, steps)
    while (missing := round(steps * (tokens / grpo_tokens(run) - 1))) > 0:
        steps += missing
        train_grpo(run, seed, steps)
    return steps, run


def train_grpo(run: Path, seed: int, steps: int) -> Path:
    """No group is drawn again, so a step is PER_STEP completions."""
    start("scripts.grpo", "--config", GRPO, "--output-dir", run, "--seed", seed, "--max-steps", steps,
          "--dynamic-sampling-tries", 1)
    return run


def grpo_tokens(run: Path) -> int:
    from training.metrics import read_metrics

    lengths = [line["completions/mean_length"] for line in read_metrics(run) if "reward" in line]
    return round(sum(lengths) * PER_STEP)


def read_answers(data: Path) -> list[dict[str, Any]]:
    lines = (data / "cache" / "sample" / "answers.jsonl").read_text().split("\n")
    return [json.loads(line)["value"] for line in lines if line]


def check_same_prompts(folder: Path, seed: int) -> None:
    """Raises AssertionError where the two sides were trained on other prompts, or on other numbers of rows."""
    rows = [sorted((row["source"], row["row"]) for row in map(json.loads, (
        folder / f"{name}-{seed}" / "kept.jsonl").read_text().splitlines())) for name in ("best", "first")]
    assert rows[0] == rows[1], f"seed {seed}: the sides have other prompts"


def start(module: str, *flags: Any) -> None:
    """Runs a script to its end. Raises InputError where it fails."""
    if subprocess.run([sys.executable, "-m", module, *map(str, flags)], check=False).returncode:
        raise InputError(f"{module} failed; mend what it says above, and give the same command again")


def report(path: Path, compared: Sequence[tuple[str, Sequence[tuple[Path, str]], Sequence[tuple[Path, str]]]],
           lines: Sequence[str] = ()) -> None:
    """A table each: the same problems before and after, samples of all seeds by problem; printed and written."""
    from evals.comparison import compare
    from evals.tables import open_console, print_comparison

    console = open_console(record=True)
    for line in lines:
        console.print(line)
    for title, before, after in compared:
        print_comparison(compare(pooled(before), pooled(after)), title, console=console)
    write_text(path, console.export_text())


def pooled(runs: Sequence[tuple[Path, str]]) -> dict[str, list[Any]]:
    """The answers of several runs at a step: those to sums, those to products, and all of them."""
    from evals.results import read_evaluation

    found: dict[str, list[Any]] = {}
    for run, step in runs:
        for task, samples in read_evaluation(run / "evals" / step).items():
            for name in ("sums" if "chain_sum" in task else "products", "both"):
                found.setdefault(name, []).extend(dataclasses.replace(
                    sample, task=name, values={"right": next(iter(sample.values.values()))}) for sample in samples)
    return {name: found[name] for name in ("sums", "products", "both")}


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
