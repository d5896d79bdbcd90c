"""Temper's side of score_vs_transformers.py: what scripts.score does between reading the rows and writing the scores.

  python -m benchmarks.temper_score_worker SETTINGS.json RESULT.json
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from batch import Row, choose_lengths
from cli.checks import compute_in
from models.pretrained import open_pretrained
from models.scoring import score
from sharding.mesh import MeshConfig, make_layout
from training.evaluation import make_row_scorer

MANY = 1000
"""batches of a file that is worth some compiling"""


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Scores all rows twice: once to compile and warm up, then measured. The scores are waited for.

    Rows are padded to lengths that suit a file of MANY batches like these: for a small one, scripts.score would compile
    fewer and pad more, which is the cost of starting.
    """
    layout, dtype = make_layout(MeshConfig()), compute_in(settings["dtype"])
    model, variables = open_pretrained(settings["model"]).load(layout, dtype=dtype, param_dtype=dtype)
    rows = [as_row(*each) for each in zip(settings["prompts"], settings["completions"], strict=True)]
    sizes = choose_lengths((len(row.tokens) for row in rows), settings["batch_size"], MANY)
    score_all = make_row_scorer(model, settings["batch_size"], layout, score, sizes)
    score_all(variables, rows)
    start = time.perf_counter()
    scores = score_all(variables, rows)
    seconds = time.perf_counter() - start
    logps = [each.logps[len(prompt):].tolist() for each, prompt in zip(scores, settings["prompts"], strict=True)]
    return {"seconds": seconds, "tokens": sum(len(row.tokens) for row in rows), "logps": logps}


def as_row(prompt: list[int], completion: list[int]) -> Row:
    mask = np.repeat(np.float32([0, 1]), [len(prompt), len(completion)])
    return Row(np.asarray(prompt + completion, np.int32), mask)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
