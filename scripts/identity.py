"""The identity recipe: an instruct model learns by DPO to be called Ember; what that gained and what it cost."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli import command
from cli.parsing import from_here, invocation, parse_recipe
from scripts import dpo, export, report
from scripts.quickstart import Evaluated, is_right, question, shortened, write_answers

DESCRIPTION = """Give the embedded SmolLM2-135M-Instruct a new identity by LoRA DPO, and show what that gained and cost.

The recipe is configs/identity.yaml. Its pairs prefer answers that name Ember, made by the Temper project, to questions
about the model itself, and ordinary answers to ordinary questions. No question of the evaluation is among them. What is
evaluated in the end is export/ in the run directory: the base model plus --lora-scale times what was learned, which
costs less of what the model knew than all of it does. Everything that is shown is kept in the run directory."""

RECIPE = from_here("configs/identity.yaml")
QUESTIONS, GENERAL = (f"keywords:{from_here(f'data/identity/{name}.jsonl')}" for name in ("questions", "general"))
TEXTS = from_here("data/identity/texts.jsonl")
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
    write_answers(run / "samples" / "identity.jsonl", *({task: each[task] for task in (QUESTIONS, GENERAL)}
                                                         for each in (before, after)))
    print_answers(run, before, after)
    report.main(report.Config((str(run),)))
    print(f"\nNext: {invocation('generate')} --model {renamed} --prompt 'Who are you?'")


def examine(model: str) -> Evaluated:
    """All that is measured before and after: greedy answers, and how well the model predicts general text."""
    from cli.checks import resolve_dtype
    from cli.online import open_tokenized
    from evals.subject import Subject
    from evals.tasks import evaluate
    from sharding.mesh import MeshConfig, make_layout

    opened, tokenizer = open_tokenized(model)
    dtype, layout = resolve_dtype("auto"), make_layout(MeshConfig())
    loaded, variables = opened.load(layout, dtype=dtype, param_dtype=dtype)
    subject = Subject(loaded, tokenizer, layout, num_slots=24)
    subject.load(variables)
    return evaluate(subject, (QUESTIONS, GENERAL), max_new_tokens=40) | {TEXTS: text_losses(subject)}


def text_losses(subject: Any) -> list[Any]:
    """The mean negative log-likelihood of each eval text, nats a token."""
    from data.sources import DataSource, open_source
    from evals.samples import Sample

    texts = [row["text"] for row in open_source(DataSource(TEXTS))]
    tokens = [subject.encode(text) for text in texts]
    scored = subject.loglikelihoods([(each[:1], each[1:]) for each in tokens])
    return [Sample(TEXTS, text, text, 0, text, "", None, {"nats a token": -logp / (len(each) - 1)}, "")
            for text, each, (logp, _) in zip(texts, tokens, scored, strict=True)]


def print_answers(run: Path, before: Evaluated, after: Evaluated) -> None:
    """The tables and the figures, on the terminal, and the evaluations in evals/."""
    from rich.table import Table

    from evals.comparison import compare
    from evals.results import write_evaluation
    from evals.tables import open_console, print_comparison

    table = Table(title="eval questions, before and after", show_lines=True)
    for name, share in (("question", 3), ("before", 4), ("after", 4)):
        table.add_column(name, ratio=share)
    for task in (QUESTIONS, GENERAL):
        for old, new in list(zip(before[task], after[task], strict=True))[:SHOWN]:
            table.add_row(question(old), marked(old), marked(new))
    console, compared = open_console(), compare(before, after)
    console.print(table)
    print_comparison(compared, "answers with the right words, and loss on general text", console=console)
    console.print(cost(before[GENERAL], after[GENERAL]))
    write_evaluation(run / "evals" / "before", before, {})
    write_evaluation(run / "evals" / "after", after, {}, compared)
    print(f"all answers: {run}/samples/identity.jsonl")


def marked(sample: Any) -> str:
    """An answer, green where it is right."""
    from rich.markup import escape

    text = escape(shortened(sample.completion))
    return f"[green]{text}[/]" if is_right(sample) else text


def cost(before: Sequence[Any], after: Sequence[Any]) -> str:
    """What became of general questions."""
    from evals.statistics import wilson

    known = [new for old, new in zip(before, after, strict=True) if is_right(old)]
    kept, leaked = sum(map(is_right, known)), sum("Ember" in sample.completion for sample in after)
    low, high = wilson(kept / max(1, len(known)), len(known))
    return (f"of {len(known)} general questions that were answered right before, [bold]{kept}[/] still are "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %); answered with the name: {leaked} of {len(after)}")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
