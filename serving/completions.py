"""POST /v1/completions: texts are gone on with, and may be echoed with their log-probabilities."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from rollouts.engine import Output
from serving.answers import logps_of, make_head, num_likeliest, usage
from serving.jobs import Job
from serving.logprobs import CompletionLogprobs, TokenLogps, TokenTexts
from serving.sample_requests import make_samples, stop_strings
from serving.schemas import CompletionBody
from serving.served import Served, check_choices
from serving.text import StopCutter, TextStream
from serving.work import SampleRequest, ScoreRequest

DEFAULT_TOKENS = 16
"""of a completion whose body says nothing of it: OpenAI's"""

Part = dict[str, Any]
"""text, logprobs and finish_reason of a choice, or what is new of them"""


class CompletionAnswer:
    """See the module; an answers.Answer. Raises InputError or Refusal for what cannot be answered."""

    def __init__(self, served: Served, texts: TokenTexts, body: CompletionBody):
        self._served, self._texts, self._body = served, texts, body
        self._prompts = [served.encode(prompt) for prompt in body.prompts()]
        self.samples = self._samples()
        self.rows = [ScoreRequest(prompt, True) for prompt in self._prompts if body.echo and body.logprobs is not None]
        self._head = make_head(served, "cmpl")
        self._tokens = 0

    def _samples(self) -> list[SampleRequest]:
        body = self._body
        check_choices(len(self._prompts) * (body.n or 1))
        if stop_strings(body):
            self._served.check_text()
        limits = [self._served.limit(prompt, body.max_tokens, DEFAULT_TOKENS) for prompt in self._prompts]
        return make_samples(body, self._prompts, limits, num_likeliest(body.logprobs)) if all(limits) else []

    async def whole(self, job: Job) -> dict[str, Any]:
        choices: list[Part] = [{} for _ in range(self._count)]
        async for number, part in self._parts(job):
            choices[number] = _joined(choices[number], part)
        return self._head.object("text_completion", choices=[_choice(*each) for each in enumerate(choices)],
                                 usage=usage(self._prompts, self._tokens))

    async def chunks(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        more = {"usage": None} if self._body.include_usage else {}
        async for number, part in self._parts(job):
            yield self._head.object("text_completion", choices=[_choice(number, part)], **more)
        if self._body.include_usage:
            yield self._head.object("text_completion", choices=[], usage=usage(self._prompts, self._tokens))

    @property
    def _count(self) -> int:
        """Choices."""
        return len(self._prompts) * (self._body.n or 1)

    async def _parts(self, job: Job) -> AsyncIterator[tuple[int, Part]]:
        """(number of the choice, what is new of it)."""
        choices = [_Choice(self._served, self._texts, self._body) for _ in range(self._count)]
        if self._body.echo:
            scores = await job.scores()
            for number, choice in enumerate(choices):
                prompt = number // (self._body.n or 1)
                yield number, choice.echo(self._body.prompts()[prompt], self._prompts[prompt],
                                          scores[prompt] if scores else None)
        if not self.samples:
            for number in range(self._count):
                yield number, {"text": "", "logprobs": None, "finish_reason": "length"}
        async for number, output in job.outputs():
            self._tokens += len(output.tokens)
            yield number, choices[number].add(output)


class _Choice:
    """One completion as it comes."""

    def __init__(self, served: Served, texts: TokenTexts, body: CompletionBody):
        self._served, self._text = served, TextStream(served.decode)
        self._stops = StopCutter(stop_strings(body))
        self._logprobs = None if body.logprobs is None else CompletionLogprobs(texts, served.decode, body.logprobs)

    def echo(self, prompt: Any, tokens: Sequence[int], scores: Any) -> Part:
        text = prompt if isinstance(prompt, str) else self._served.decode(tokens)
        return self._part(text, None if scores is None else _of_prompt(tokens, scores), None)

    def add(self, output: Output) -> Part:
        last = output.finish_reason is not None
        text = self._stops.add(self._text.add(output.tokens, last), last)
        return self._part(text, logps_of(output), "stop" if last and self._stops.found else output.finish_reason)

    def _part(self, text: str, logps: TokenLogps | None, finish_reason: str | None) -> Part:
        logprobs = self._logprobs.add(logps) if self._logprobs and logps else None
        return {"text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _of_prompt(tokens: Sequence[int], scores: Any) -> TokenLogps:
    """Nothing predicts the first token."""
    likeliest = [dict(zip(*each)) for each in zip(scores.likeliest.tolist(), scores.likeliest_logps.tolist())]
    return TokenLogps(tokens, [None, *scores.logps[1:].tolist()], [None, *likeliest[1:]])


def _joined(choice: Part, part: Part) -> Part:
    if not choice:
        return part
    one, other = choice["logprobs"], part["logprobs"]
    both = one and other and {name: values and values + other[name] for name, values in one.items()}
    return {"text": choice["text"] + part["text"], "logprobs": both or one or other,
            "finish_reason": part["finish_reason"]}


def _choice(index: int, part: Part) -> dict[str, Any]:
    return {"index": index, **part}
