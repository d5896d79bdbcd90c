"""The two-minute tour: questions before, LoRA fine-tuning, the same questions after, an exported adapter."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from cli import command
from cli.parsing import parse_recipe
from data.sources import DataSource
from errors import shown
from scripts import export, generate, sft

DESCRIPTION = """Fine-tune the embedded SmolLM2-135M-Instruct on conversations about Temper and compare its answers.

The recipe is configs/quickstart.yaml; the eval questions ask for the facts of the training conversations in words
that occur in none of them. Everything that is shown is kept in the run directory."""

RECIPE = Path("configs/quickstart.yaml")
SHOWN = 8
"""questions shown in the table; samples/ has all"""


@dataclasses.dataclass(frozen=True)
class Config:
    output_dir: str | None = None
    """The run directory is made here; by default where the recipe says."""
    max_steps: int | None = None
    """The run takes this many optimiser steps; the recipe's by default."""


def main(config: Config) -> None:
    recipe = parse_recipe(sft.Config, RECIPE, **dataclasses.asdict(config))
    run = Path(recipe.output_dir)

    print(f"1/4  {recipe.model} answers the eval questions, not fine-tuned yet", flush=True)
    before = answers(recipe.model, recipe.eval_data)
    print(f"2/4  fine-tuning with LoRA rank {recipe.lora.rank}: {recipe.max_steps} steps of {recipe.batch_size} "
          f"conversations from {shown(recipe.data)}", flush=True)
    sft.main(recipe)
    print("3/4  the fine-tuned model answers the same questions", flush=True)
    after = answers(str(run), recipe.eval_data)
    print("4/4  exporting the adapter for PEFT", flush=True)
    adapter = run / "export" / "adapter"
    if not adapter.exists():
        export.main(export.Config(model=str(run), output=str(adapter), format="adapter"))
    write_answers(run, before, after)
    report(run, before, after)
    print(f"\nNext: python -m scripts.generate --model {run} --prompt 'How do I resume a Temper run?' --temperature 0"
          f"\n      (with {Path('.venv/bin/python')} where no environment is active)")


def answers(model: str, questions: tuple[DataSource, ...]) -> list[dict[str, Any]]:
    """Greedy answers to the eval questions."""
    return generate.complete(generate.Config(model=model, data=questions, max_new_tokens=40, temperature=0.0,
                                             num_slots=24))


def is_right(row: dict[str, Any]) -> bool:
    """True where the answer holds all the row's keywords, each as the beginning of a word ("remember" is no Ember)."""
    return all(re.search(rf"(?<!\w){re.escape(word)}", row["completion"], re.IGNORECASE) for word in row["keywords"])


def write_answers(run: Path, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    """samples/quickstart.jsonl: each question with both answers."""
    from files import whole_lines

    (run / "samples").mkdir(exist_ok=True)
    with whole_lines(run / "samples" / "quickstart.jsonl") as write:
        for old, new in zip(before, after, strict=True):
            write({"question": question(old), "before": old["completion"], "after": new["completion"],
                   "expected": old["messages"][-1]["content"], "right_before": is_right(old),
                   "right_after": is_right(new)})


def question(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"]


def report(run: Path, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    """The table and the figures, on the terminal and as report.svg."""
    from rich.console import Console
    from rich.table import Table

    from training.metrics import read_metrics

    table = Table(title="eval questions, before and after", show_lines=True)
    for name, share in (("question", 3), ("before", 4), ("after", 4), ("", None)):
        table.add_column(name, ratio=share)
    for old, new in list(zip(before, after, strict=True))[:SHOWN]:
        mark = "[green]right[/]" if is_right(new) else "[red]wrong[/]"
        table.add_row(question(old), shortened(old["completion"]), shortened(new["completion"]), mark)
    losses = [line["eval/loss"] for line in read_metrics(run) if "eval/loss" in line]
    console = Console(record=True, width=110)
    console.print(table)
    console.print(f"answers with the right fact: {sum(map(is_right, before))} of {len(before)} before, "
                  f"[bold]{sum(map(is_right, after))} of {len(after)}[/] after")
    console.print(f"eval loss (nats a token): {losses[0]:.3f} before, [bold]{losses[-1]:.3f}[/] after")
    console.save_svg(str(run / "report.svg"), title="make quickstart")
    print(f"all {len(before)} answers: {run}/samples/quickstart.jsonl; this picture: {run}/report.svg")


def shortened(text: str, limit: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
