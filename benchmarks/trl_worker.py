"""TRL's side of sft_vs_trl.py: LoRA fine-tuning with SFTTrainer, each optimiser step timed.

  python trl_worker.py SETTINGS.json RESULT.json

Runs in an environment of its own (torch, transformers, trl, peft) and imports nothing of Temper.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
import trl


class StepClock(transformers.TrainerCallback):
    """Wall-clock time from the end of one optimiser step to the end of the next; torch waits for its CPU work."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends = [time.perf_counter()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each step, the first one with whatever warms up in it."""
        return [end - start for start, end in zip(self.ends, self.ends[1:])]


def run(make_trainer: Callable[[dict[str, Any]], transformers.Trainer], settings_file: str, result_file: str) -> None:
    """Trains, and writes seconds and loss of each step and what was used."""
    settings = json.loads(Path(settings_file).read_text())
    torch.set_num_threads(settings["threads"])
    trainer, clock = make_trainer(settings), StepClock()
    trainer.add_callback(clock)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = {"seconds": clock.seconds(), "losses": losses, "facts": facts(trainer)}
    Path(result_file).write_text(json.dumps(result))


def make_trainer(settings: dict[str, Any]) -> trl.SFTTrainer:
    """SFTTrainer around the exported model, every token a target."""
    return trl.SFTTrainer(
        args=trl.SFTConfig(**common_arguments(settings), packing=False),
        train_dataset=datasets.Dataset.from_dict({"input_ids": settings["rows"]}), **model_with_lora(settings))


def model_with_lora(settings: dict[str, Any]) -> dict[str, Any]:
    """A trainer's arguments: the exported model, its tokenizer, and LoRA on every linear layer; at rank 0 none."""
    folder = settings["model"]
    return {"model": transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=settings["weights"]),
            "processing_class": transformers.AutoTokenizer.from_pretrained(folder),
            "peft_config": lora(settings) if settings["rank"] else None}


def lora(settings: dict[str, Any]) -> peft.LoraConfig:
    return peft.LoraConfig(r=settings["rank"], lora_alpha=settings["alpha"], lora_dropout=0.0,
                           target_modules="all-linear", task_type="CAUSAL_LM")


def common_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Constant rate, AdamW without decay, clipping at 1, and no gradient checkpointing: as Temper is run beside it."""
    return {"output_dir": settings["output_dir"], "use_cpu": True, "seed": 0, "report_to": "none",
            "save_strategy": "no", "eval_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
            "max_steps": settings["steps"], "per_device_train_batch_size": settings["batch_size"],
            "learning_rate": settings["learning_rate"], "lr_scheduler_type": "constant", "weight_decay": 0.0,
            "max_grad_norm": 1.0, "bf16": settings["autocast"], "gradient_checkpointing": False, "max_length": None}


def facts(trainer: transformers.Trainer) -> dict[str, Any]:
    """What TRL really used, asked of the trainer and not of the settings."""
    model, args = trainer.model, trainer.args
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    return {
        "versions": {name: module.__version__ for name, module in (
            ("trl", trl), ("torch", torch), ("transformers", transformers), ("peft", peft))},
        "frozen weights": dtypes(frozen) or "none", "trained weights": dtypes(trained),
        "trained numbers": sum(weight.numel() for weight in trained),
        "autocast": trainer.accelerator.mixed_precision, "gradient checkpointing": model.is_gradient_checkpointing,
        "attention": model.config._attn_implementation, "loss": getattr(args, "loss_type", "the model's"),
        "optimiser": str(args.optim.value), "threads": torch.get_num_threads(),
    }


def dtypes(weights: list[torch.Tensor]) -> str:
    """The dtypes among some weights."""
    return ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights}))


if __name__ == "__main__":
    run(make_trainer, *sys.argv[1:])
