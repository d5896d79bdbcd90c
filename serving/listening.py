"""The socket, and uvicorn on it: the main thread serves, the engine has a thread of its own."""

import asyncio
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn

from errors import InputError
from serving.ticks import Ticks

GRACE = 30
"""seconds that answers on their way may take once the server is told to stop"""
CONNECTIONS = 4096
"""at a time; further ones are answered 503"""


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def take_port(host: str, port: int) -> socket.socket:
    """A socket that has the address, before any weights are read; nobody can connect yet. Raises InputError where it
    cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise InputError(_in_use(host, port, error)) from None
    return listener


def _in_use(host: str, port: int, error: OSError) -> str:
    return (f"--host {host} --port {port}: nothing can listen there ({error.strerror}); end what does, or choose "
            f"another port")


def serve(app: Any, listener: socket.socket, ticks: Ticks, on_listening: Callable[[], None]) -> None:
    """Until SIGTERM or Ctrl-C, after which answers on their way have GRACE; or until the engine's thread fails, whose
    error is raised. `on_listening` is called once it can be reached."""
    engine = threading.Thread(target=ticks.run, name="engine", daemon=True)
    server = _Server(uvicorn.Config(
        app, log_level="warning", http="h11", ws="none", lifespan="off", timeout_graceful_shutdown=GRACE,
        limit_concurrency=CONNECTIONS, server_header=False, proxy_headers=False), on_listening)
    engine.start()
    try:
        asyncio.run(_run(server, listener, ticks))
    finally:
        ticks.stop()
        engine.join(GRACE)
    if ticks.error:
        raise ticks.error


class _Server(uvicorn.Server):
    """One that ends as a signal says, and does not raise it once more then: the other processes of a run are to be
    told."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]):
        super().__init__(config)
        self._notify = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._notify()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


async def _run(server: uvicorn.Server, listener: socket.socket, ticks: Ticks) -> None:
    async def watch() -> None:
        while not ticks.ended.is_set():
            await asyncio.sleep(0.5)
        server.should_exit = True

    watching = asyncio.ensure_future(watch())
    try:
        await server.serve([listener])
    except OSError as error:  # two that began at a time have the port
        raise InputError(_in_use(*listener.getsockname()[:2], error)) from None
    finally:
        watching.cancel()
