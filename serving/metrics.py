"""What Prometheus reads at /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("temper_requests", "Requests that were answered", ["path", "status"],
                                registry=registry)
        self.seconds = Histogram("temper_request_seconds", "From a request to the end of its answer", ["path"],
                                 buckets=SECONDS, registry=registry)
        self.first_token = Histogram("temper_first_token_seconds", "From a request to its first token",
                                     buckets=SECONDS, registry=registry)
        self.prompt_tokens = Counter("temper_prompt_tokens", "Tokens of prompts and of scored rows", registry=registry)
        self.completion_tokens = Counter("temper_completion_tokens", "Tokens drawn", registry=registry)
        self._running = Gauge("temper_running", "Completions and rows being computed", registry=registry)
        self._waiting = Gauge("temper_waiting", "Completions and rows that wait", registry=registry)

    def watch(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Reads how many run and wait when that is read."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def text(self) -> bytes:
        return generate_latest(self._registry)
