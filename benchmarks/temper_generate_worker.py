"""Temper's side of generate_vs_transformers.py.

  python -m benchmarks.temper_generate_worker SETTINGS.json RESULT.json
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from models.pretrained import open_pretrained
from rollouts.engine import Engine, capacity_for
from rollouts.generate import generate
from rollouts.sampling import make_controls
from sharding.mesh import MeshConfig, make_layout


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Compiles on one batch of short completions, then measures; the completions are waited for."""
    layout = make_layout(MeshConfig())
    model, variables = open_pretrained(settings["model"]).load(layout, dtype=settings["dtype"],
                                                              param_dtype=settings["dtype"])
    size, limits, prompts = settings["batch_size"], settings["limits"], settings["prompts"]

    def sample(engine: Engine, count: int, limits: list[int]) -> int:
        engine.load(variables)
        made = generate(engine, prompts[:count], jax.random.key(0), max_new_tokens=limits, controls=make_controls())
        return sum(len(each.tokens) for each in made)

    engine = Engine(model, size, capacity_for(model, size, len(prompts[0]) + max(limits)))
    sample(engine, size + 1, [2] * (size + 1))
    start = time.perf_counter()
    tokens = sample(engine, len(prompts), limits)
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
