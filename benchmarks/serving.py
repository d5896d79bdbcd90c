"""The server under load beside the engine alone: tokens a second, the first token, the longest silence, by clients."""

import contextlib
import dataclasses
import http.client
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from cli.checks import check_positive
from cli.command import run
from models.pretrained import EMBEDDED, open_pretrained
from rollouts.engine import Engine, Request
from sharding.mesh import MeshConfig, make_layout

DESCRIPTION = """The server under load beside the engine alone.

  python -m benchmarks.serving"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: str = EMBEDDED
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    clients: tuple[int, ...] = (1, 8, 64)
    """so many ask at a time, each again once it is answered"""
    seconds: float = 120.0
    """after which no client asks again"""
    num_slots: int = 64
    cache_tokens: int = 32768
    longest_prompt: int = 256
    longest_answer: int = 128


class Asked(NamedTuple):
    """A request: as long as chance has it, and answered to its limit."""

    tokens: list[int]
    max_tokens: int
    seed: int


class Answered(NamedTuple):
    """One that was answered."""

    tokens: int
    first: float
    """seconds to the first token"""
    silence: float
    """the longest time between two parts"""


class Load(NamedTuple):
    """What came of a number of clients."""

    seconds: float
    """until the last one was answered"""
    answers: list[Answered]
    errors: list[str]

    @property
    def rate(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds


def main(config: Config) -> None:
    check_positive(config, "seconds", "num_slots", "cache_tokens", "longest_prompt", "longest_answer")
    layout = make_layout(MeshConfig(), jax.devices()[:1])
    model, variables = open_pretrained(config.model).load(layout, dtype=config.dtype, param_dtype=config.dtype)
    engine = Engine(model, config.num_slots, config.cache_tokens, layout=layout)
    engine.load(variables)
    engine.warm_up(model.config.max_length)
    table = Table("clients", "", "tokens/s", "of the engine's", "first token, s: median, 95 %", "longest silence, s",
                  "answers", "errors", title=f"{config.seconds:g} s of ragged requests")
    with serving(config) as address:
        for count in config.clients:
            alone = load_engine(engine, config, count)
            served = load_server(address, config, count)
            for name, found in (("engine", alone), ("server", served)):
                table.add_row(str(count), name, f"{found.rate:.1f}", f"{found.rate / alone.rate:.3f}",
                              *describe(found))
            for error in served.errors[:5]:
                print(error)
    Console().print(table)


def describe(load: Load) -> list[str]:
    firsts = sorted(answer.first for answer in load.answers)
    silence = max(answer.silence for answer in load.answers)
    return [f"{statistics.median(firsts):.2f}, {firsts[int(0.95 * (len(firsts) - 1))]:.2f}", f"{silence:.2f}",
            str(len(load.answers)), str(len(load.errors))]


def requests_of(config: Config, client: int) -> Iterator[Asked]:
    """The same for both sides, of each client."""
    random = np.random.default_rng(client)
    for number in itertools.count():
        length, limit = (int(random.integers(8, longest + 1))
                         for longest in (config.longest_prompt, config.longest_answer))
        yield Asked(random.integers(1000, 40000, length).tolist(), limit, 1000 * client + number)


# ------------------------------------------------------------------------------------------------- the engine by itself

def load_engine(engine: Engine, config: Config, count: int) -> Load:
    """Each client asks again in the step after its answer."""
    start, answers = time.monotonic(), []
    clients = [requests_of(config, client) for client in range(count)]
    running = {submit(engine, next(client)): (client, Clock()) for client in clients}
    while running:
        for output in engine.step():
            client, clock = running[output.id]
            clock.came(len(output.tokens))
            if output.finish_reason:
                del running[output.id]
                answers.append(clock.answered())
                if time.monotonic() - start < config.seconds:
                    running[submit(engine, next(client))] = client, Clock()
    return Load(time.monotonic() - start, answers, [])


def submit(engine: Engine, asked: Asked) -> int:
    [identity] = engine.submit([Request(asked.tokens, asked.max_tokens, np.asarray([0, asked.seed], np.uint32))])
    return identity


class Clock:
    """Of one request, from when it is asked."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._first, self._silence, self._tokens = 0.0, 0.0, 0

    def came(self, tokens: int) -> None:
        now = time.monotonic()
        if self._last == self._start:
            self._first = now - self._start
        else:
            self._silence = max(self._silence, now - self._last)
        self._last = now
        self._tokens += tokens

    def answered(self, tokens: int | None = None) -> Answered:
        return Answered(self._tokens if tokens is None else tokens, self._first, self._silence)


# ----------------------------------------------------------------------------------------------------------- the server

@contextlib.contextmanager
def serving(config: Config) -> Iterator[str]:
    """HOST:PORT of a server of its own."""
    flags = {"model": config.model, "port": 0, "dtype": config.dtype, "num-slots": config.num_slots,
             "cache-tokens": config.cache_tokens, "served-name": "model"}
    command = [sys.executable, "-m", "scripts.serve", *(str(part) for name, value in flags.items()
                                                        for part in (f"--{name}", value))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip().rpartition("http://")[2].removesuffix("/v1")
    finally:
        process.terminate()
        process.wait()


def load_server(address: str, config: Config, count: int) -> Load:
    """Clients in threads, each with its connection; they read streams."""
    start = time.monotonic()
    load = Load(0.0, [], [])

    def ask_again(client: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=600)
        for asked in requests_of(config, client):
            if time.monotonic() - start > config.seconds:
                break
            guarded(load, lambda asked=asked: ask(connection, asked))

    threads = [threading.Thread(target=ask_again, args=(client,)) for client in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load._replace(seconds=time.monotonic() - start)


def guarded(load: Load, work: Callable[[], Answered]) -> None:
    try:
        load.answers.append(work())
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        load.errors.append(f"{type(error).__name__}: {error}")


def ask(connection: http.client.HTTPConnection, asked: Asked) -> Answered:
    """Raises ValueError for what is no answer."""
    body = {"prompt": asked.tokens, "max_tokens": asked.max_tokens, "seed": asked.seed, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}}
    clock = Clock()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response, usage = connection.getresponse(), None
    for line in response:
        if line.startswith(b"data: {"):
            event: dict[str, Any] = json.loads(line[6:])
            if "error" in event:
                raise ValueError(event["error"]["message"])
            usage = event["usage"] or usage
            clock.came(0)
    if response.status != 200 or usage is None or usage["completion_tokens"] != asked.max_tokens:
        raise ValueError(f"HTTP {response.status}, usage {usage} of {asked.max_tokens} tokens")
    return clock.answered(usage["completion_tokens"])


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
