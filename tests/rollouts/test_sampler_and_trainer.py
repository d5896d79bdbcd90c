"""One model, two ways: the engine's log-probabilities are those of the trainer's scorer on the same weights."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import CONFIG, LORA, jitted_score, padded, random_variables

from batch import Row
from models.transformer import Transformer
from rollouts.engine import Engine
from rollouts.generate import generate
from rollouts.sampling import make_controls

PROMPTS = [[3, 14, 15, 9, 2, 6], [5, 3], [58, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2]]


def differences(model, variables):
    """Of the log-probabilities of sampled tokens, in absolute value."""
    engine = Engine(model, 8, page=16)
    engine.load(variables)
    completions = generate(engine, PROMPTS, jax.random.key(0), max_new_tokens=24, controls=make_controls(),
                           group_size=4)
    contexts = [prompt for prompt in PROMPTS for _ in range(4)]
    rows = [Row(np.asarray(context + each.tokens, np.int32), np.zeros(len(context + each.tokens), np.float32))
            for context, each in zip(contexts, completions, strict=True)]
    logps = jitted_score(model, variables, padded(rows)).logps
    return np.abs(np.concatenate([
        logps[row, len(context) : len(context) + len(each.tokens)] - np.asarray(each.logps)
        for row, (context, each) in enumerate(zip(contexts, completions, strict=True))]))


@pytest.mark.parametrize(("dtype", "lora", "mean", "largest"), [
    ("bfloat16", None, 0.005, 0.2), ("bfloat16", LORA, 0.02, 0.2),
    pytest.param("float32", LORA, 1e-5, 1e-4, marks=pytest.mark.slow)])
def test_sampler_and_scorer_agree(dtype, lora, mean, largest):
    config = dataclasses.replace(CONFIG, dtype=dtype)
    found = differences(Transformer(config, lora), random_variables(lora, config=config))
    assert np.mean(found) < mean
    assert np.max(found) < largest
