"""Rewards that are different on one host of a run, and an environment that is never as fast as the time before."""

import asyncio
import os
import random
import time
from pathlib import Path

import jax
from chat_model import digits


def kept(prompts, completions, **columns):
    """digits, which notes in the folder GRADED how many rows each process graded."""
    with (Path(os.environ["GRADED"]) / f"{jax.process_index()} of {jax.process_count()}").open("a") as file:
        file.write("x" * len(completions))
    return digits(prompts, completions)


def fails_on_one(prompts, completions, **columns):
    if jax.process_index() == 1:
        raise OSError("no sandbox on this host")
    return digits(prompts, completions)


def late_on_one(prompts, completions, **columns):
    time.sleep(60 * (jax.process_index() == 1))
    return digits(prompts, completions)


_graded = []


def bad_on_one(prompts, completions, **columns):
    """From the third step on."""
    _graded.extend(completions)
    bad = jax.process_index() == 1 and len(_graded) > 12
    return [float("nan") if bad else value for value in digits(prompts, completions)]


class Echo:
    """Says again what the policy said, as late as it likes, twice."""

    def reset(self, row):
        assert jax.process_index() == 0
        time.sleep(random.uniform(0, 0.1))
        return [{"role": "user", "content": row["prompt"]}]

    async def step(self, messages):
        await asyncio.sleep(random.uniform(0, 0.1))
        if "e" in messages[-1]["content"]:
            raise ValueError("an e")
        return [{"role": "user", "content": messages[-1]["content"][:3]}], len(messages) > 3, 0.25
