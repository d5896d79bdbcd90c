"""Who comes in: with the key, by a name of this machine; and what of every request is counted."""

import hmac
import re
import time
from collections.abc import Container
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import Metrics
from serving.refusals import Refusal

KEYLESS_PATHS = ("/health",)
"""paths that need no key"""
LOOPBACK_NAME = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
"""what a server that listens on this machine alone is called; a page of the web that has its own name lead here is not
let in"""


class Access:
    """A middleware; see the module."""

    def __init__(self, app: ASGIApp, api_key: str | None, only_here: bool, metrics: Metrics, paths: Container[str]):
        self._app, self._key, self._only_here, self._metrics, self._paths = app, api_key, only_here, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), "0"

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            refusal = self._refusal(scope)
            app: Any = self._app if refusal is None else JSONResponse(refusal.body(), refusal.status, refusal.headers)
            await app(scope, receive, sending)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - start)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._only_here and not LOOPBACK_NAME.fullmatch(host):
            return Refusal(421, f"this server listens on its own machine alone, as localhost, not as {host!r}")
        if self._key is None or scope["path"] in KEYLESS_PATHS:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key.encode()):
            return None
        return Refusal(401, "the API key is missing or wrong: Authorization: Bearer KEY", "authentication_error",
                       "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
