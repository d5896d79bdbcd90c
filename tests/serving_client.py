"""What tests ask of a server, and what the engine answers by itself."""

import json

import jax
import numpy as np
from tiny import jitted_score, padded

from batch import Row
from rollouts.engine import Engine
from rollouts.generate import generate
from rollouts.sampling import make_controls
from rollouts.stops import make_ends


def post(client, path="/v1/completions", **body):
    return client.post(path, json={"max_tokens": 12, "seed": 7} | body)


def streamed(client, path="/v1/completions", **body):
    response = post(client, path, stream=True, **body)
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def expected(parts, prompts, n=1, seed=7, count=12, stop=(), **controls):
    """What an engine of its own answers: scripts.generate's completions of the same seed."""
    engine = Engine(parts.model, 4, 2048, 16, parts.layout)
    engine.load(parts.variables)
    return generate(engine, [parts.tokenizer.encode(prompt) for prompt in prompts], jax.random.key(seed),
                    max_new_tokens=count, controls=make_controls(**controls), ends=make_ends(parts.tokenizer, stop),
                    group_size=n)


def scores_of(parts, rows):
    """The scorer's, of token ids."""
    made = [Row(np.asarray(row, np.int32), np.ones(len(row), np.float32)) for row in rows]
    scores = jitted_score(parts.model, parts.variables, padded(made, 16))
    return [type(scores)(*(np.asarray(each[place, : len(row)]) for each in scores)) for place, row in enumerate(rows)]
