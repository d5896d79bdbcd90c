"""Completions of a list of prompts: a loop around the engine."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rollouts.engine import Engine, Request
from rollouts.requests import fold_keys
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
    """"stop" (an end token or a stop string), "length", or "error" (numbers that are not finite, say)"""


def generate(engine: Engine, prompts: Sequence[Sequence[int]], key: Any, *, max_new_tokens: int | Sequence[int],
             controls: Controls, ends: Ends = NO_ENDS, group_size: int = 1,
             advance: Callable[[int], None] = lambda count: None) -> list[Completion]:
    """`group_size` completions of each prompt, prompt by prompt; `max_new_tokens` for all, or for each completion.

    Completion i draws with fold_in(key, i). `advance` is told of completions as they finish. Raises InputError as
    submit() does.
    """
    total = len(prompts) * group_size
    limits = np.broadcast_to(np.asarray(max_new_tokens), (total,)).tolist()
    requests = [Request(prompts[number // group_size], limit, each, controls, ends)
                for number, (limit, each) in enumerate(zip(limits, fold_keys(key, range(total)), strict=True))]
    completions = {}
    for number, completion in stream(engine, requests):
        completions[number] = completion
        advance(1)
    return [completions[number] for number in range(total)]


def stream(engine: Engine, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
    """(number among the requests, completion), as they finish."""
    numbers = {identity: number for number, identity in enumerate(engine.submit(requests))}
    growing = {identity: Completion([], [], "") for identity in numbers}
    while engine.busy:
        for output in engine.step():
            tokens, logps, _ = growing[output.id]
            tokens += output.tokens
            logps += output.logps
            if output.finish_reason:
                del growing[output.id]
                yield numbers[output.id], Completion(tokens, logps, output.finish_reason)


def in_order(numbered: Iterable[tuple[int, Completion]]) -> Iterator[Completion]:
    """Completions by their numbers, from 0, each as soon as those before it are there."""
    early: dict[int, Completion] = {}
    due = 0
    for number, completion in numbered:
        early[number] = completion
        while due in early:
            yield early.pop(due)
            due += 1


def stream_blocks(engine: Engine, make_requests: Callable[[range], Sequence[Request]], total: int, first: int,
                  block: int) -> Iterator[Completion]:
    """Completions number `first` to total - 1, in order, the same to the last bit wherever it begins.

    Beside other rows, and after another part of a prompt that is kept, the same sums are rounded otherwise. So blocks
    of so many requests are each answered by themselves, and the one that `first` lies in is from its beginning.
    """
    for start in range(first - first % block, total, block):
        numbers = range(start, min(start + block, total))
        engine.forget()
        for number, completion in zip(numbers, in_order(stream(engine, make_requests(numbers)))):
            if number >= first:
                yield completion
