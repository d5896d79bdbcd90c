"""The server under load beside the engine alone: tokens a second, the first token, the longest gap, by clients."""

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
from errors import InputError
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
    """so many requests are on their way at a time; each client sends its next one once it has an answer"""
    seconds: float = 120.0
    """after which no client sends another"""
    num_slots: int = 64
    cache_tokens: int = 32768
    longest_prompt: int = 256
    longest_completion: int = 128


class LoadRequest(NamedTuple):
    """Of random lengths, and completed to its limit."""

    tokens: list[int]
    max_tokens: int
    seed: int


class Timing(NamedTuple):
    """Of one completion."""

    tokens: int
    first_token: float
    """seconds"""
    longest_gap: float
    """seconds between two parts"""


class Load(NamedTuple):
    """The completions of a number of clients."""

    seconds: float
    """until the last one was complete"""
    timings: list[Timing]
    errors: list[str]

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return sum(timing.tokens for timing in self.timings) / self.seconds


def main(config: Config) -> None:
    check_positive(config, "seconds", "num_slots", "cache_tokens", "longest_prompt", "longest_completion")
    layout = make_layout(MeshConfig(), jax.devices()[:1])
    model, variables = open_pretrained(config.model).load(layout, dtype=config.dtype, param_dtype=config.dtype)
    engine = Engine(model, config.num_slots, config.cache_tokens, layout=layout)
    engine.load(variables)
    engine.warm_up(model.config.max_length)
    table = Table("clients", "", "tokens/s", "of the engine's", "first token, s: median, 95 %", "longest gap, s",
                  "completions", "errors", title=f"{config.seconds:g} s of ragged requests")
    with serving(config) as address:
        for count in config.clients:
            alone = load_engine(engine, config, count)
            served = load_server(address, config, count)
            for name, found in (("engine", alone), ("server", served)):
                table.add_row(str(count), name, f"{found.rate:.1f}", f"{found.rate / alone.rate:.3f}",
                              *describe(found))
            for error in served.errors[:5]:
                print(error)
    Console(width=120).print(table)


def describe(load: Load) -> list[str]:
    if not load.timings:
        return ["", "", "0", str(len(load.errors))]
    firsts = sorted(timing.first_token for timing in load.timings)
    gap = max(timing.longest_gap for timing in load.timings)
    return [f"{statistics.median(firsts):.2f}, {firsts[int(0.95 * (len(firsts) - 1))]:.2f}", f"{gap:.2f}",
            str(len(load.timings)), str(len(load.errors))]


def requests_of(config: Config, client: int) -> Iterator[LoadRequest]:
    """The same for both sides, of each client."""
    random = np.random.default_rng(client)
    for number in itertools.count():
        length, limit = (int(random.integers(8, longest + 1))
                         for longest in (config.longest_prompt, config.longest_completion))
        yield LoadRequest(random.integers(1000, 40000, length).tolist(), limit, 1000 * client + number)


# ------------------------------------------------------------------------------------------------- the engine by itself

def load_engine(engine: Engine, config: Config, count: int) -> Load:
    """Each client's next request comes in the step after its last completion."""
    start, timings = time.monotonic(), []
    clients = [requests_of(config, client) for client in range(count)]
    running = {submit(engine, next(client)): (client, Clock()) for client in clients}
    while running:
        for output in engine.step():
            client, clock = running[output.id]
            clock.record(len(output.tokens))
            if output.finish_reason:
                del running[output.id]
                timings.append(clock.timing())
                if time.monotonic() - start < config.seconds:
                    running[submit(engine, next(client))] = client, Clock()
    return Load(time.monotonic() - start, timings, [])


def submit(engine: Engine, request: LoadRequest) -> int:
    [identity] = engine.submit([Request(request.tokens, request.max_tokens, np.asarray([0, request.seed], np.uint32))])
    return identity


class Clock:
    """Of one request, from when it is sent."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._first, self._gap, self._tokens = 0.0, 0.0, 0

    def record(self, tokens: int) -> None:
        """A part has come."""
        now = time.monotonic()
        if self._last == self._start:
            self._first = now - self._start
        else:
            self._gap = max(self._gap, now - self._last)
        self._last = now
        self._tokens += tokens

    def timing(self, tokens: int | None = None) -> Timing:
        return Timing(self._tokens if tokens is None else tokens, self._first, self._gap)


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
        line = process.stdout.readline().strip()
        if not line:
            raise InputError("the server did not start; its last words are above")
        yield line.rpartition("http://")[2].removesuffix("/v1")
    finally:
        process.terminate()
        process.wait()


def load_server(address: str, config: Config, count: int) -> Load:
    """Clients in threads, each with its connection; they read streams."""
    start = time.monotonic()
    load = Load(0.0, [], [])

    def run_client(client: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=600)
        for request in requests_of(config, client):
            if time.monotonic() - start > config.seconds:
                break
            guarded(load, lambda request=request: complete(connection, request))

    threads = [threading.Thread(target=run_client, args=(client,)) for client in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load._replace(seconds=time.monotonic() - start)


def guarded(load: Load, work: Callable[[], Timing]) -> None:
    try:
        load.timings.append(work())
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        load.errors.append(f"{type(error).__name__}: {error}")


def complete(connection: http.client.HTTPConnection, request: LoadRequest) -> Timing:
    """Raises ValueError for what is no completion."""
    body = {"prompt": request.tokens, "max_tokens": request.max_tokens, "seed": request.seed, "ignore_eos": True,
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
            clock.record(0)
    if response.status != 200 or usage is None or usage["completion_tokens"] != request.max_tokens:
        raise ValueError(f"HTTP {response.status}, usage {usage} of {request.max_tokens} tokens")
    return clock.timing(usage["completion_tokens"])


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
