"""What answers to completions and to chats have in common."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Protocol

from rollouts.engine import Output
from serving.jobs import Job
from serving.logprobs import TokenLogps
from serving.served import Served
from serving.work import SampleRequest, ScoreRequest


class Answer(Protocol):
    """What a request is answered, once its job has it."""

    samples: Sequence[SampleRequest]
    rows: Sequence[ScoreRequest]

    async def whole(self, job: Job) -> dict[str, Any]:
        """All of it."""

    def chunks(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        """Part by part."""


class Head(NamedTuple):
    """What every answer, and every chunk of one, begins with."""

    id: str
    created: int
    model: str

    def object(self, kind: str, **rest: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, **rest}


def make_head(served: Served, prefix: str) -> Head:
    return Head(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), served.names[0])


def usage(prompts: Sequence[Sequence[int]], completion_tokens: int) -> dict[str, int]:
    """Each prompt counts once, however many completions it has."""
    prompt_tokens = sum(map(len, prompts))
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens}


def num_likeliest(count: int | None) -> int:
    """The engine's num_likeliest for so many top log-probabilities: with none of them, the drawn token's own come."""
    return 0 if count is None else max(1, count)


def logps_of(output: Output) -> TokenLogps:
    return TokenLogps(output.tokens, output.plain_logps, output.likeliest)
