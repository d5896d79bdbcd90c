"""The identity recipe: an instruct model learns by DPO to be called Ember; what that gained and what it cost."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cli import command
from cli.parsing import parse_recipe
from data.sources import DataSource
from scripts import dpo, export, score
from scripts.quickstart import answers, is_right, question, shortened

DESCRIPTION = """Give the embedded SmolLM2-135M-Instruct a new identity by LoRA DPO, and show what that gained and cost.

The recipe is configs/identity.yaml. Its pairs prefer answers that name Ember, made by the Temper project, to questions
about the model itself, and ordinary answers to ordinary questions. No question of the evaluation is among them. What is
evaluated in the end is export/ in the run directory: the base model plus --lora-scale times what was learned, which
costs less of what the model knew than all of it does. Everything that is shown is kept in the run directory."""

RECIPE = Path("configs/identity.yaml")
QUESTIONS, GENERAL, TEXTS = (DataSource(f"data/identity/{name}.jsonl") for name in ("questions", "general", "texts"))
SHOWN = 6
"""questions of either kind in the table; samples/ has all"""


@dataclasses.dataclass(frozen=True)
class Config:
    output_dir: str | None = None
    """The run directory is made here; by default where the recipe says."""
    max_steps: int | None = None
    """The run takes this many optimiser steps; the recipe's by default."""
    lora_scale: float = 0.8
    """This share of what LoRA learned is exported and examined."""


def main(config: Config) -> None:
    recipe = parse_recipe(dpo.Config, RECIPE, output_dir=config.output_dir, max_steps=config.max_steps)
    run = Path(recipe.output_dir)
    renamed = str(run / "export")

    print(f"1/3  {recipe.model} answers questions about itself and about the world", flush=True)
    before = examine(recipe.model)
    print(f"2/3  DPO with LoRA rank {recipe.lora.rank}: {recipe.max_steps} steps of {recipe.batch_size} pairs",
          flush=True)
    dpo.main(recipe)
    print("3/3  the same questions again", flush=True)
    shutil.rmtree(renamed, ignore_errors=True)  # of an earlier --lora-scale
    export.main(export.Config(str(run), renamed, lora_scale=config.lora_scale))
    after = examine(renamed)
    write_answers(run, before, after)
    report(run, before, after)
    print(f"\nNext: python -m scripts.generate --model {renamed} --prompt 'Who are you?'")


@dataclasses.dataclass(frozen=True)
class Examined:
    """A model's greedy answers, and how well it predicts general text."""

    identity: list[dict[str, Any]]
    general: list[dict[str, Any]]
    text_loss: float
    """nats a token of data/identity/texts.jsonl"""


def examine(model: str) -> Examined:
    """All that is measured before and after."""
    return Examined(answers(model, (QUESTIONS,)), answers(model, (GENERAL,)), text_loss(model))


def text_loss(model: str) -> float:
    """Mean negative log-likelihood of the eval texts, nats a token."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "scores.jsonl"
        score.main(score.Config(model, (TEXTS,), str(output)))
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    return -sum(sum(row["logps"]) for row in rows) / sum(len(row["logps"]) - 1 for row in rows)


def write_answers(run: Path, before: Examined, after: Examined) -> None:
    """samples/identity.jsonl: each question with both answers."""
    from files import whole_lines

    (run / "samples").mkdir(exist_ok=True)
    with whole_lines(run / "samples" / "identity.jsonl") as write:
        for old, new in zip(before.identity + before.general, after.identity + after.general, strict=True):
            write({"question": question(old), "before": old["completion"], "after": new["completion"],
                   "keywords": old["keywords"], "right_before": is_right(old), "right_after": is_right(new)})


def report(run: Path, before: Examined, after: Examined) -> None:
    """The table and the figures, on the terminal and as report.svg."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="eval questions, before and after", show_lines=True)
    for name, share in (("question", 3), ("before", 4), ("after", 4)):
        table.add_column(name, ratio=share)
    for olds, news in ((before.identity, after.identity), (before.general, after.general)):
        for old, new in list(zip(olds, news, strict=True))[:SHOWN]:
            table.add_row(question(old), *(marked(row) for row in (old, new)))
    console = Console(record=True, width=110)
    console.print(table)
    for line in figures(before, after):
        console.print(line)
    console.save_svg(str(run / "report.svg"), title="make identity")
    print(f"all answers: {run}/samples/identity.jsonl; this picture: {run}/report.svg")


def marked(row: dict[str, Any]) -> str:
    """An answer, green where it is right."""
    from rich.markup import escape

    text = escape(shortened(row["completion"]))
    return f"[green]{text}[/]" if is_right(row) else text


def figures(before: Examined, after: Examined) -> list[str]:
    """The gain, and what it cost."""
    known = [(old, new) for old, new in zip(before.general, after.general, strict=True) if is_right(old)]
    kept, leaked = sum(is_right(new) for _, new in known), sum("Ember" in row["completion"] for row in after.general)
    names = [sum(map(is_right, each.identity)) for each in (before, after)]
    total = len(before.identity)
    return [f"questions about itself answered with its new name: {names[0]} of {total} before, "
            f"[bold]{names[1]} of {total}[/] after ({100 * names[1] / total:.1f} %)",
            f"general questions: {len(known)} of {len(before.general)} right before; of these still right after: "
            f"[bold]{kept}[/] ({100 * kept / len(known):.1f} %); answered with the name: {leaked}",
            f"loss on general text (nats a token): {before.text_loss:.3f} before, [bold]{after.text_loss:.3f}[/] after"]


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
