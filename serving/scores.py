"""POST /v1/score: log-probabilities of texts and chats, or a reward model's rewards, as scripts.score has them."""

from collections.abc import Sequence
from typing import Any

from data.encode import encode_record
from errors import InputError
from serving.answers import make_head, usage
from serving.jobs import Job
from serving.refusals import Refusal
from serving.schemas import ScoreBody
from serving.served import Served, check_choices
from serving.work import ScoreRequest


class ScoreAnswer:
    """Raises InputError or Refusal for rows that cannot be scored."""

    samples = ()

    def __init__(self, served: Served, body: ScoreBody):
        check_choices(len(body.rows()))
        self._rows = [_encoded(served, number, row) for number, row in enumerate(body.rows())]
        self.rows = [ScoreRequest(row.tokens.tolist(), False) for row in self._rows]
        self._head = make_head(served, "score")

    async def whole(self, job: Job) -> dict[str, Any]:
        scores = await job.scores()
        data = [{"index": number, "object": "score", **_scored(row, each)}
                for number, (row, each) in enumerate(zip(self._rows, scores, strict=True))]
        return self._head.object("list", data=data, usage=usage([row.tokens for row in self.rows], 0))


def _encoded(served: Served, number: int, record: dict[str, Any]) -> Any:
    try:
        row = encode_record(record, served.tokenizer, vocab_size=served.config.vocab_size,
                            training=served.config.reward_head)
    except InputError as error:
        raise InputError(f"input {number}: {error}") from None
    if len(row.tokens) > served.max_length:
        raise Refusal(400, f"input {number} has {len(row.tokens)} tokens, more than this model's context of "
                           f"{served.max_length}", code="context_length_exceeded", param="input")
    return row


def _scored(row: Any, scores: Any) -> dict[str, Any]:
    """`score` is the reward, or the log-probability of the row's targets."""
    if hasattr(scores, "rewards"):
        return {"score": scores.rewards.item()}
    return {"score": float((scores.logps * row.loss_mask).sum()), "logps": _list(scores.logps),
            "entropy": _list(scores.entropy), "loss_mask": _list(row.loss_mask)}


def _list(values: Any) -> Sequence[float]:
    return values.tolist()
