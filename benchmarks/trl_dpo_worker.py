"""TRL's side of dpo_vs_trl.py: DPO with DPOTrainer and LoRA, each optimiser step timed.

  python trl_dpo_worker.py SETTINGS.json RESULT.json

Runs in an environment of its own (torch, transformers, trl, peft) and imports nothing of Temper.
"""

import sys
from typing import Any

import datasets
import trl
from trl_worker import common_arguments, model_with_lora, run


class PretokenisedDPOTrainer(trl.DPOTrainer):
    """DPOTrainer on rows that are token ids already, which it would make of text before the first step."""

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        return dataset


def make_trainer(settings: dict[str, Any]) -> trl.DPOTrainer:
    """DPOTrainer around the exported model; the reference is the same model with its adapter off, at every step."""
    columns = dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), zip(*settings["pairs"])))
    return PretokenisedDPOTrainer(
        args=trl.DPOConfig(**common_arguments(settings), loss_type=["sigmoid"], beta=settings["beta"],
                           precompute_ref_log_probs=False, padding_free=False),
        train_dataset=datasets.Dataset.from_dict(columns), **model_with_lora(settings))


if __name__ == "__main__":
    run(make_trainer, *sys.argv[1:])
