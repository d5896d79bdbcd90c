"""The other side of evals_vs_hf.py: lm-evaluation-harness with its own backend for transformers.

  python lm_eval_hf_worker.py SETTINGS.json RESULT.json

Runs in an environment of its own (torch, transformers, lm-eval) and imports nothing of Temper.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """What lm-eval makes of every task, by name, and seconds by request type."""
    torch.set_num_threads(settings["threads"])
    model = HFLM(settings["model"], dtype=settings["dtype"], device="cpu", batch_size=settings["batch_size"],
                 max_length=settings["max_length"])
    found = {}
    for name, chat in settings["tasks"].items():
        start = time.perf_counter()
        result = simple_evaluate(model, tasks=[name], task_manager=TaskManager(include_path=settings["include_path"]),
                                 apply_chat_template=chat, fewshot_as_multiturn=chat, bootstrap_iters=0)
        found[name] = {"results": result["results"][name], "seconds": time.perf_counter() - start,
                       "requests": [[each["arguments"], each["resps"]] for each in result["samples"][name]]}
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text())), default=str))
