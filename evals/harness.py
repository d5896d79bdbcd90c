"""lm-evaluation-harness in process: its tasks, prompts, filters and metrics, over a Subject's scorer and engine.

`HarnessModel` is an LM as lm-eval takes it. `judge` runs one of its tasks and gives a Sample an answer, each graded by
itself however often a question is answered, where lm-eval's own loop would drop all answers but the first. Needs
requirements-evals.txt.
"""

import collections
import dataclasses
import hashlib
import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from data.chat import render
from errors import InputError, shown
from evals.samples import Sample
from evals.subject import Subject
from rollouts.sampling import make_controls

LIMIT_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""what tasks call the limit of an answer: the first that is there counts"""
DEFAULT_LIMIT = 256
"""lm-eval's own, of tasks that name none"""
CUTS = ("top_k", "top_p", "min_p", "repetition_penalty")
READ_ELSEWHERE = {"do_sample", "temperature", "until", *CUTS, *LIMIT_NAMES}
PASSAGES = ("passage", "context", "article", "story", "paragraph")
"""columns of documents: questions about one text are a family"""
THOUGHT_END = "</think>"
"""an answer that is graded begins after it"""


class Generation(NamedTuple):
    """How answers are drawn, besides what tasks say; None leaves it to them."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int = 0
    num_samples: int = 1


AS_TASKS_SAY = Generation()


class Response(NamedTuple):
    """What a request got."""

    value: Any
    """what lm-eval takes: a text, (log-probability, greedy), or a log-probability"""
    finish_reason: str = ""
    context_tokens: int = 0
    truncated_context: bool = False


class Asked(NamedTuple):
    """How requests are to be answered together."""

    max_new_tokens: int
    temperature: float
    cuts: tuple[tuple[str, float], ...]
    stops: tuple[str, ...]


class HarnessModel(TemplateLM):
    """A Subject as lm-eval takes models."""

    def __init__(self, subject: Subject, generation: Generation = AS_TASKS_SAY,
                 template_kwargs: Mapping[str, Any] | None = None):
        super().__init__()
        self.subject, self.tokenizer, self.generation = subject, subject.tokenizer, generation
        self._template_kwargs = dict(template_kwargs or {})

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.subject.prefix

    @property
    def max_length(self) -> int:
        return self.subject.max_length

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's own cache of requests, where one uses it, is known again by."""
        return hashlib.sha256((self.tokenizer.chat_template or "").encode()).hexdigest()

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.tokenizer.chat_template or ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model sees it. Without `add_generation_prompt`, its last message is the beginning of
        the answer."""
        messages, beginning = (chat_history, "") if add_generation_prompt else (
            chat_history[:-1], chat_history[-1]["content"])
        return render(self.tokenizer, messages, True, chat_template_kwargs=self._template_kwargs) + beginning

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.tokenizer.encode(string) if add_special_tokens is False else self.subject.encode(string)

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any,
                              ) -> list[tuple[float, bool]]:
        return self.subject.loglikelihoods([(context, continuation) for _, context, continuation in requests])

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[float]:
        """Of texts whose only BOS is the prefix."""
        return self.subject.rolling([self.tokenizer.encode(each.args[0]) for each in requests])

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """Texts. A request that is there several times, as repeats of lm-eval's are, is answered anew each time."""
        counts = collections.Counter(map(id, requests))
        once = list({id(each): each for each in requests}.values())
        drawn = self.answers(once, max(counts.values(), default=1))
        unused = {id(each): iter(responses) for each, responses in zip(once, drawn, strict=True)}
        return [next(unused[id(each)]).value for each in requests]

    def respond(self, requests: Sequence[Instance], num_samples: int) -> list[list[Response]]:
        """`num_samples` responses to each of requests of one kind; a log-probability is the same each time."""
        kind = requests[0].request_type
        if kind == "generate_until":
            return self.answers(requests, num_samples)
        if kind == "loglikelihood_rolling":
            return [[Response(value)] * num_samples for value in self.loglikelihood_rolling(requests)]
        values = self.loglikelihood(requests, disable_tqdm=True)
        return [[Response(value, "", *self._context(each))] * num_samples
                for each, value in zip(requests, values, strict=True)]

    def _context(self, request: Instance) -> tuple[int, bool]:
        """(tokens of the context of a log-likelihood, whether it was cut)."""
        context, continuation = request.args[:2]
        pair = self._encode_pair(context, continuation) if context else ([self.prefix_token_id], [])
        return len(pair[0]), self.subject.is_cut(pair)

    def answers(self, requests: Sequence[Instance], num_samples: int) -> list[list[Response]]:
        """`num_samples` answers to each request, drawn as its task and `generation` say."""
        alike: dict[Asked, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(self._asked(request), []).append(index)
        found: list[Any] = [None] * len(requests)
        for asked, indices in alike.items():
            responses = self._answers([requests[index].args[0] for index in indices], asked, num_samples)
            for index, each in zip(indices, responses, strict=True):
                found[index] = each
        return found

    def _answers(self, texts: Sequence[str], asked: Asked, num_samples: int) -> list[list[Response]]:
        fitted = [self.subject.fit(self.tok_encode(text), asked.max_new_tokens) for text in texts]
        controls = make_controls(asked.temperature, **dict(asked.cuts))
        drawn = self.subject.generate([tokens for tokens, _, _ in fitted], [limit for _, limit, _ in fitted], controls,
                                      asked.stops, self.generation.seed, num_samples)
        return [[Response(answer.text, answer.finish_reason, len(tokens), cut) for answer in answers]
                for (tokens, _, cut), answers in zip(fitted, drawn, strict=True)]

    def _asked(self, request: Instance) -> Asked:
        """Raises InputError for what a task asks of generation that the engine has not."""
        kwargs = {name: value for name, value in request.args[1].items() if value is not None}
        beyond = {name: value for name, value in kwargs.items() if name not in READ_ELSEWHERE}
        if beyond.pop("num_beams", 1) != 1 or beyond:
            raise InputError(f"task {request.task_name} asks for generation_kwargs {shown(beyond) or 'num_beams'}, "
                             f"which the engine has not; give a task without (--include-path)")
        limit = next((kwargs[name] for name in LIMIT_NAMES if name in kwargs), DEFAULT_LIMIT)
        until = kwargs.get("until", ())
        stops = [until] if isinstance(until, str) else until
        temperature = float(kwargs.get("temperature", 1.0 if kwargs.get("do_sample") else 0.0))
        temperature = temperature if kwargs.get("do_sample", True) else 0.0
        temperature = temperature if self.generation.temperature is None else self.generation.temperature
        return Asked(int(self.generation.max_new_tokens or limit), temperature,
                     tuple((name, kwargs[name]) for name in CUTS if name in kwargs), tuple(filter(None, stops)))


def judge(task: Any, model: HarnessModel, limit: int | None = None, chat: bool = False) -> dict[str, list[Sample]]:
    """Runs a task of lm-eval's on its first `limit` documents, or all: task -> a Sample an answer.

    `chat`: prompts are conversations, examples of answers turns of them. A metric that gives a document several
    verdicts, as ifeval's of instructions do, makes a task of its own, whose questions are what they are of.
    """
    task.build_all_requests(limit=limit, apply_chat_template=chat, fewshot_as_multiturn=chat,
                            chat_template=model.apply_chat_template if chat else None,
                            tokenizer_name=model.tokenizer_name if chat else "")
    responses: dict[int, list[Response]] = {}
    for kind in {each.request_type: None for each in task.instances}:
        requests = [each for each in task.instances if each.request_type == kind]
        answered = model.respond(requests, model.generation.num_samples)
        responses |= {id(request): each for request, each in zip(requests, answered, strict=True)}
    repeats = [_graded(task, responses, repeat) for repeat in range(model.generation.num_samples)]
    graded = [each for group in zip(*repeats, strict=True) for each in group]
    parts = [part for sample, several in graded for part in _parts(sample, several)]
    whole = {task.config.task: [sample for sample, _ in graded]}
    return whole | ({parts[0].task: parts} if parts else {})


Verdicts = dict[str, list[float]]
"""of metrics that give a document several"""


def _graded(task: Any, responses: Mapping[int, list[Response]], repeat: int) -> list[tuple[Sample, Verdicts]]:
    """The samples of every document's answer number `repeat`."""
    documents: dict[int, list[Instance]] = {}
    for request in task.instances:
        value = responses[id(request)][repeat].value
        request.resps = [_without_thought(value)]
        documents.setdefault(request.doc_id, []).append(request)
    task.apply_filters()
    return [_sample(task, sorted(requests, key=lambda each: each.idx), responses, repeat)
            for requests in documents.values()]


def _sample(task: Any, requests: Sequence[Instance], responses: Mapping[int, list[Response]], repeat: int,
            ) -> tuple[Sample, Verdicts]:
    document, mine = requests[0].doc, [responses[id(each)][repeat] for each in requests]
    graded = {f"{metric},{name}": value for name in requests[0].filtered_resps
              for metric, value in _grade(task, requests, name).items()}
    values = {name: number for name, value in graded.items() for number in [_number(value)] if number is not None}
    several = {name: [float(each) for each in value] for name, value in graded.items() if _is_several(value)}
    prompt = _text(requests[0].args[0])
    question = _digest(document, prompt)
    sample = Sample(task.config.task, question, _family(document, question), repeat, prompt,
                    _completion(requests, mine), task.doc_to_target(document), values, mine[0].finish_reason, document,
                    mine[0].context_tokens, any(each.truncated_context for each in mine),
                    _answer(requests[0].filtered_resps))
    return sample, several


def _grade(task: Any, requests: Sequence[Instance], name: str) -> dict[str, Any]:
    return task.process_results(requests[0].doc, [each.filtered_resps[name] for each in requests])


def _parts(sample: Sample, several: Verdicts) -> list[Sample]:
    """A sample for each verdict of those that a document has several of, all of one family."""
    count = max(map(len, several.values()), default=0)
    return [dataclasses.replace(sample, task=f"{sample.task}_parts", question=f"{sample.question}/{place}",
                                values={name: value[place] for name, value in several.items() if place < len(value)})
            for place in range(count)]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, numbers.Real) else None


def _is_several(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, numbers.Real) for each in value)


def _answer(filtered: Mapping[str, Any]) -> str | None:
    """What a filter took out of the answer, if one did."""
    return next((value for name, value in filtered.items() if name != "none" and isinstance(value, str)), None)


def _completion(requests: Sequence[Instance], responses: Sequence[Response]) -> str:
    """The answer, or the likeliest of several continuations."""
    if isinstance(responses[0].value, str):
        return responses[0].value
    if len(requests[0].args) < 2:
        return ""
    likeliest = max(range(len(requests)), key=lambda index: responses[index].value[0])
    return requests[likeliest].args[1]


def _text(context: Any) -> str:
    """Of a prompt, or of the several that a question with several contexts has."""
    return context if isinstance(context, str) else "\n".join(map(str, context))


def _without_thought(value: Any) -> Any:
    return value.split(THOUGHT_END)[-1].lstrip() if isinstance(value, str) and THOUGHT_END in value else value


def _family(document: Mapping[str, Any], question: str) -> str:
    passage = next((document[name] for name in PASSAGES if isinstance(document.get(name), str)), None)
    return question if passage is None else _digest(passage)


def _digest(*values: Any) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
