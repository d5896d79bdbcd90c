"""TRL's side of grpo_vs_trl.py: GRPO with GRPOTrainer and LoRA, generating with transformers, each step timed.

  python trl_grpo_worker.py SETTINGS.json RESULT.json

Runs in an environment of its own (torch, transformers, trl, peft) and imports nothing of Temper.
"""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import trl
from trl_worker import common_arguments, model_with_lora, run


def vowels(completions: list[Any], **_: Any) -> list[float]:
    """The reward of grpo_vs_trl.py."""
    texts = [each[-1]["content"] for each in completions]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


def make_trainer(settings: dict[str, Any]) -> trl.GRPOTrainer:
    """GRPOTrainer around the exported model: on policy, one update a batch of completions, no reference."""
    arguments = common_arguments(settings)
    del arguments["max_length"]
    return trl.GRPOTrainer(
        args=trl.GRPOConfig(**arguments, num_generations=settings["group_size"], beta=0.0, temperature=1.0,
                            max_completion_length=settings["max_new_tokens"], use_vllm=False),
        train_dataset=datasets.Dataset.from_dict({"prompt": settings["prompts"]}), reward_funcs=[vowels],
        **model_with_lora(settings))


if __name__ == "__main__":
    trainers = []
    run(lambda settings: trainers.append(make_trainer(settings)) or trainers[0], *sys.argv[1:])
    lengths = [entry["completions/mean_length"] for entry in trainers[0].state.log_history
               if "completions/mean_length" in entry]
    result = json.loads(Path(sys.argv[2]).read_text())
    result["facts"]["mean completion"] = sum(lengths) / len(lengths)
    Path(sys.argv[2]).write_text(json.dumps(result))
