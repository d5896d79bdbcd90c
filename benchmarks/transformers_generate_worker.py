"""The other side of generate_vs_transformers.py: transformers' generate, batch after batch, with a static batch each.

  python transformers_generate_worker.py SETTINGS.json RESULT.json

Runs in an environment of its own (torch, transformers) and imports nothing of Temper.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers


class OwnLimits(transformers.StoppingCriteria):
    """A row is done once it has its own number of new tokens."""

    def __init__(self, prompt_length: int, limits: list[int]):
        self.lengths = torch.tensor([prompt_length + limit for limit in limits])

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.lengths


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Warms up with a few tokens, then measures. Batches are in the order of the rows, as they come."""
    torch.set_num_threads(settings["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(settings["model"], dtype=settings["dtype"]).eval()
    model.generation_config.eos_token_id = None
    size, limits, prompts = settings["batch_size"], settings["limits"], torch.tensor(settings["prompts"])

    def sample(rows: torch.Tensor, limits: list[int]) -> int:
        with torch.inference_mode():
            model.generate(rows, attention_mask=torch.ones_like(rows), do_sample=True, temperature=1.0, top_k=0,
                           max_new_tokens=max(limits), pad_token_id=0,
                           stopping_criteria=transformers.StoppingCriteriaList([OwnLimits(rows.shape[1], limits)]))
        return sum(limits)

    sample(prompts[:size], [2] * len(prompts[:size]))
    start = time.perf_counter()
    tokens = sum(sample(prompts[start : start + size], limits[start : start + size])
                 for start in range(0, len(prompts), size))
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
