"""What the engine costs besides the model: by the limit of a completion, in memory, on the host, and to compile."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from cli.checks import check_positive
from cli.command import run
from models.pretrained import EMBEDDED, open_pretrained
from rollouts import decoder
from rollouts.engine import Engine, Request
from rollouts.stops import Ends
from sharding.mesh import MeshConfig, make_layout

DESCRIPTION = """The engine's cost by limit and by number of requests.

  python -m benchmarks.engine_cost"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: str = EMBEDDED
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    new_tokens: int = 64
    """of each completion, about: an end token of its own ends it"""
    limits: tuple[int, ...] = (128, 1024, 4096)
    requests: tuple[int, ...] = (1, 16, 64)
    prompt_length: int = 64
    rounds: int = 3
    """of which the fastest counts"""


class Clock:
    """Seconds in what is compiled, which is waited for."""

    def __init__(self) -> None:
        self.device = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            found = jax.block_until_ready(function(*arguments))
            self.device += time.perf_counter() - start
            return found

        return timed


def main(config: Config) -> None:
    check_positive(config, "new_tokens", "prompt_length", "rounds")
    clock = Clock()
    decoder.decode, decoder.prefill = clock.wrap(decoder.decode), clock.wrap(decoder.prefill)
    layout = make_layout(MeshConfig(), jax.devices()[:1])
    model, variables = open_pretrained(config.model).load(layout, dtype=config.dtype, param_dtype=config.dtype)
    by_limit = Table("limit", "seconds", "of the first", "cache, MiB", title=f"16 completions of {config.new_tokens}")
    by_count = Table("requests", "seconds", "tokens/s", "host, microseconds a token", "first run, s",
                     title=f"completions of {config.new_tokens} tokens")
    seconds = []
    for limit in config.limits:
        found = measure(model, variables, config, 16, limit, clock)
        seconds.append(found["seconds"])
        by_limit.add_row(str(limit), f"{seconds[-1]:.3f}", f"{seconds[-1] / seconds[0]:.3f}",
                         f"{found['cache'] / 2**20:.0f}")
    for count in config.requests:
        found = measure(model, variables, config, count, config.new_tokens * 2, clock)
        by_count.add_row(str(count), f"{found['seconds']:.3f}", f"{found['tokens'] / found['seconds']:.0f}",
                         f"{found['host'] / found['tokens'] * 1e6:.0f}", f"{found['first']:.1f}")
    Console().print(by_limit)
    Console().print(by_count)


def measure(model: Any, variables: Any, config: Config, count: int, limit: int, clock: Clock) -> dict[str, float]:
    """Of the fastest round: its seconds, those on the host, tokens; bytes of the cache; seconds of a first run."""
    engine, start = Engine(model, count), time.perf_counter()
    engine.load(variables)
    free = answer(engine, config, [Ends()] * count, config.new_tokens + 16)
    first = time.perf_counter() - start
    ends = [Ends((end_of(tokens, config.new_tokens),)) for tokens in free]
    answer(engine, config, ends, limit)
    rounds = []
    for _ in range(config.rounds):
        engine.load(variables)  # nothing is gone on from
        clock.device, start = 0.0, time.perf_counter()
        tokens = sum(map(len, answer(engine, config, ends, limit)))
        seconds = time.perf_counter() - start
        rounds.append((seconds, seconds - clock.device, tokens))
    seconds, host, tokens = min(rounds)
    return {"seconds": seconds, "host": host, "tokens": tokens, "cache": engine.cache_bytes, "first": first}


def answer(engine: Engine, config: Config, ends: list[Ends], limit: int) -> list[list[int]]:
    """Completions of as many prompts of random tokens."""
    random = np.random.default_rng(0)
    vocab_size = engine.model.config.vocab_size
    ids = engine.submit([Request(random.integers(vocab_size, size=config.prompt_length).tolist(), limit,
                                 np.asarray([0, number], np.uint32), ends=each) for number, each in enumerate(ends)])
    found: dict[int, list[int]] = {identity: [] for identity in ids}
    while engine.busy:
        for output in engine.step():
            found[output.id] += output.tokens
    return list(found.values())


def end_of(tokens: list[int], length: int) -> int:
    """The first token from place `length` on that does not come before."""
    return next((token for at, token in enumerate(tokens) if at >= length - 1 and token not in tokens[:at]), tokens[-1])


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
