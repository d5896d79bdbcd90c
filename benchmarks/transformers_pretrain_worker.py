"""The other side of pretrain_vs_transformers.py: transformers' Trainer as its run_clm.py has it, each step timed.

  python transformers_pretrain_worker.py SETTINGS.json RESULT.json

Runs in an environment of its own (torch, transformers, trl, peft) and imports nothing of Temper.
"""

import sys
from typing import Any

import datasets
import transformers
from trl_worker import common_arguments, run


def make_trainer(settings: dict[str, Any]) -> transformers.Trainer:
    """Trainer around the model, on rows that are packed already, every token a target."""
    arguments = common_arguments(settings)
    del arguments["max_length"]
    return transformers.Trainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(settings["model"], dtype=settings["weights"]),
        args=transformers.TrainingArguments(**arguments), data_collator=transformers.default_data_collator,
        train_dataset=datasets.Dataset.from_dict({"input_ids": settings["rows"], "labels": settings["rows"]}))


if __name__ == "__main__":
    run(make_trainer, *sys.argv[1:])
