"""Completions of a list of prompts: a loop around the engine."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rollouts.engine import Engine, Request
from rollouts.sampling import Controls
from rollouts.stops import Ends

NO_ENDS = Ends()


class Completion(NamedTuple):
    """What one prompt was answered."""

    tokens: list[int]
    """the end token included, where one was sampled; up to the token that completes a stop string"""
    logps: list[float]
    """of each token under the distribution it was drawn from; at temperature 0, under softmax(logits)"""
    finish_reason: str
    """"stop" (an end token or a stop string) or "length" """


def generate(engine: Engine, prompts: Sequence[Sequence[int]], key: Any, *, max_new_tokens: int | Sequence[int],
             controls: Controls, ends: Ends = NO_ENDS, group_size: int = 1,
             advance: Callable[[int], None] = lambda count: None) -> list[Completion]:
    """`group_size` completions of each prompt, prompt by prompt; `max_new_tokens` for all, or for each completion.

    Completion i draws with fold_in(key, i). `advance` is told of completions as they finish. Raises InputError as
    submit() does.
    """
    total = len(prompts) * group_size
    limits = np.broadcast_to(np.asarray(max_new_tokens), (total,)).tolist()
    keys = np.asarray(jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(total))))
    requests = [Request(prompts[number // group_size], limits[number], keys[number], controls, ends)
                for number in range(total)]
    numbers = {identity: number for number, identity in enumerate(engine.submit(requests))}
    completions = [Completion([], [], "") for _ in range(total)]
    while engine.busy:
        outputs = engine.step()
        for output in outputs:
            at = completions[numbers[output.id]]
            completions[numbers[output.id]] = Completion(
                at.tokens + output.tokens, at.logps + output.logps, output.finish_reason or "")
        advance(sum(output.finish_reason is not None for output in outputs))
    return completions
