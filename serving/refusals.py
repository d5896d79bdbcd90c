"""What the server refuses, as OpenAI's error objects: {"error": {"message", "type", "param", "code"}} and a status."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class Refusal(Exception):  # noqa: N818 - what a client sees is an error object
    """What a request is answered instead of what it asks for."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The message is one line, whatever it quotes of a request."""
        message = " ".join(self.message.splitlines())
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}


def overloaded(seconds: int) -> Refusal:
    """More is on its way than may wait; `seconds` from now there may be room."""
    return Refusal(429, f"too many requests are on their way; try again in {seconds} s", "rate_limit_error",
                   "rate_limit_exceeded", headers={"Retry-After": str(seconds)})


def too_late(seconds: float) -> Refusal:
    return Refusal(504, f"the answer was not complete within {seconds:g} s (--timeout), and was given up", "timeout",
                   "timeout")


def failed(message: str) -> Refusal:
    """The server's own fault."""
    return Refusal(500, message, "server_error", "internal_error")
