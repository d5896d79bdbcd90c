"""The two-minute tour: questions before, LoRA fine-tuning, the same questions after, an exported adapter."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli import command
from cli.parsing import from_here, invocation, parse_recipe
from errors import shown
from scripts import export, report, sft

DESCRIPTION = """Fine-tune the embedded SmolLM2-135M-Instruct on conversations about Temper and compare its answers.

The recipe is configs/quickstart.yaml; the eval questions ask for the facts of the training conversations in words
that occur in none of them. Everything that is shown is kept in the run directory."""

RECIPE = from_here("configs/quickstart.yaml")
SHOWN = 8
"""questions shown in the table; samples/ has all"""

Evaluated = Mapping[str, Sequence[Any]]
"""samples by task"""


@dataclasses.dataclass(frozen=True)
class Config:
    output_dir: str | None = None
    """The run directory is made here; by default where the recipe says."""
    max_steps: int | None = None
    """The run takes this many optimiser steps; the recipe's by default."""


def main(config: Config) -> None:
    recipe = parse_recipe(sft.Config, RECIPE, **dataclasses.asdict(config))
    run = Path(recipe.output_dir)

    print(f"1/2  {recipe.model} answers the eval questions, is fine-tuned with LoRA rank {recipe.lora.rank}, "
          f"{recipe.max_steps} steps of {recipe.batch_size} conversations from {shown(recipe.data)}, and answers again",
          flush=True)
    sft.main(recipe)
    print("2/2  exporting the adapter for PEFT", flush=True)
    adapter = run / "export" / "adapter"
    if not adapter.exists():
        export.main(export.Config(model=str(run), output=str(adapter), format="adapter"))
    before, after = (evaluation(run, step) for step in (0, recipe.max_steps))
    write_answers(run / "samples" / "quickstart.jsonl", before, after)
    print_answers(run, before, after)
    report.main(report.Config((str(run),)))
    print(f"\nNext: {invocation('generate')} --model {run} --prompt 'How do I resume a Temper run?' --temperature 0"
          f"\n      (with {Path('.venv/bin/python')} where no environment is active)")


def evaluation(run: Path, step: int) -> Evaluated:
    """What --evaluate found after so many steps."""
    from evals.results import read_evaluation

    return read_evaluation(run / "evals" / f"step-{step:06d}")


def pairs(before: Evaluated, after: Evaluated) -> list[tuple[Any, Any]]:
    """The answers to each question, of all tasks."""
    return [pair for task in after for pair in zip(before[task], after[task], strict=True)]


def is_right(sample: Any) -> bool:
    return sample.values["keywords"] == 1


def question(sample: Any) -> str:
    return sample.doc["prompt"][0]["content"]


def write_answers(path: Path, before: Evaluated, after: Evaluated) -> None:
    """Each question with both answers, a line of JSON."""
    from files import whole_lines

    path.parent.mkdir(exist_ok=True)
    with whole_lines(path) as write:
        for old, new in pairs(before, after):
            write({"question": question(old), "before": old.completion, "after": new.completion,
                   "keywords": old.doc["keywords"], "right_before": is_right(old), "right_after": is_right(new)})


def print_answers(run: Path, before: Evaluated, after: Evaluated) -> None:
    """The tables and the figures, on the terminal."""
    from rich.table import Table

    from evals.comparison import compare
    from evals.tables import open_console, print_comparison
    from training.metrics import read_metrics

    table = Table(title="eval questions, before and after", show_lines=True)
    for name, share in (("question", 3), ("before", 4), ("after", 4), ("", None)):
        table.add_column(name, ratio=share)
    for old, new in pairs(before, after)[:SHOWN]:
        mark = "[green]right[/]" if is_right(new) else "[red]wrong[/]"
        table.add_row(question(old), shortened(old.completion), shortened(new.completion), mark)
    losses = [line["eval/loss"] for line in read_metrics(run) if "eval/loss" in line]
    console = open_console()
    console.print(table)
    print_comparison(compare(before, after), "answers with the right fact", console=console)
    console.print(f"eval loss (nats a token): {losses[0]:.3f} before, [bold]{losses[-1]:.3f}[/] after")
    print(f"all {len(pairs(before, after))} answers: {run}/samples/quickstart.jsonl")


def shortened(text: str, limit: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
