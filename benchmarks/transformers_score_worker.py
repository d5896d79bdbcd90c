"""The other side of score_vs_transformers.py: log-probabilities of completions, batch after batch, as one writes them
with transformers.

  python transformers_score_worker.py SETTINGS.json RESULT.json

Runs in an environment of its own (torch, transformers) and imports nothing of Temper.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

Rows = list[tuple[list[int], list[int]]]
"""prompt and completion of each"""


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Scores all rows twice: once to warm up, then measured."""
    torch.set_num_threads(settings["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(settings["model"], dtype=settings["dtype"]).eval()
    rows = list(zip(settings["prompts"], settings["completions"], strict=True))
    score_all(model, rows, settings["batch_size"])
    start = time.perf_counter()
    logps = score_all(model, rows, settings["batch_size"])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": sum(len(prompt) + len(completion) for prompt, completion in rows),
            "logps": logps}


def score_all(model: Any, rows: Rows, batch_size: int) -> list[list[float]]:
    """Of each completion's tokens, in the order of the rows; batches are of rows of like length, the longest first."""
    order = sorted(range(len(rows)), key=lambda index: -sum(map(len, rows[index])))
    scored: list[list[float]] = [[]] * len(rows)
    for start in range(0, len(rows), batch_size):
        batch = order[start : start + batch_size]
        for index, logps in zip(batch, score_batch(model, [rows[index] for index in batch]), strict=True):
            scored[index] = logps
    return scored


@torch.inference_mode()
def score_batch(model: Any, rows: Rows) -> list[list[float]]:
    """Padded on the left, so that logits are made of the last columns only; one row of them in float32 at a time."""
    width, last = max(sum(map(len, row)) for row in rows), max(len(completion) for _, completion in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for number, (prompt, completion) in enumerate(rows):
        length = len(prompt) + len(completion)
        ids[number, width - length:], mask[number, width - length:] = torch.tensor(prompt + completion), 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False,
                   logits_to_keep=last + 1).logits
    return [completion_logps(logits[number], completion) for number, (_, completion) in enumerate(rows)]


def completion_logps(logits: torch.Tensor, completion: list[int]) -> list[float]:
    """log softmax of the logits [T, V] before each token of the completion that ends the row, at that token."""
    logits = logits[-len(completion) - 1 : -1].float()
    chosen = logits.gather(1, torch.tensor(completion)[:, None])[:, 0]
    return (chosen - logits.logsumexp(1)).tolist()


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
