"""lm-evaluation-harness in process: its tasks, prompts, filters and metrics, over a Subject's scorer and engine.

`HarnessModel` is an LM as lm-eval takes it. `judge` runs one of its tasks and gives a Sample an answer, each graded by
itself however often a question is answered, where lm-eval's own loop would drop all answers but the first. Needs
requirements-evals.txt.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, nanmean
from lm_eval.api.model import TemplateLM

from data.chat import render
from errors import InputError, shown
from evals.lm_eval_tasks import seeded
from evals.samples import Sample
from evals.subject import Subject
from rollouts.sampling import make_controls
from sharding.hosts import warn

LIMIT_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""what tasks call the limit of an answer: the first that is there counts"""
DEFAULT_LIMIT = 256
"""lm-eval's own, of tasks that name none"""
CUTS = ("top_k", "top_p", "min_p", "repetition_penalty")
READ_ELSEWHERE = {"do_sample", "temperature", "until", *CUTS, *LIMIT_NAMES}
PASSAGES = ("passage", "context", "article", "story", "paragraph")
"""columns of documents: questions about one text are a family"""
NOTHING_FOUND = "[invalid]"
"""what filters of lm-eval's give then"""
THOUGHT_END = "</think>"
"""an answer that is graded begins after it"""


class Generation(NamedTuple):
    """How answers are drawn, besides what tasks say; None leaves it to them."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int = 0
    num_samples: int | None = None


AS_TASKS_SAY = Generation()


class Response(NamedTuple):
    """What a request got."""

    value: Any
    """what lm-eval takes: a text, (log-probability, greedy), or a log-probability"""
    finish_reason: str = ""
    context_tokens: int = 0
    truncated_context: bool = False


class Decoding(NamedTuple):
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
        self._conversations: dict[str, Any] = {}  # as the chat template wrote them -> as they were

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
        text = self._render(messages) + beginning
        self._conversations[text] = [dict(message) for message in chat_history]
        return text

    def _render(self, messages: list[dict[str, str]]) -> str:
        """With the system message, or, as lm-eval does, without it where the template has no place for one. Raises
        InputError where it fails without, too."""
        try:
            return render(self.tokenizer, messages, True, chat_template_kwargs=self._template_kwargs)
        except InputError:
            if messages[0]["role"] != "system":
                raise
        return self._render(messages[1:])

    def before_template(self, prompt: str) -> Any:
        """The conversation behind a prompt: the same for models with other templates."""
        return self._conversations.get(prompt, prompt)

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
        by_decoding: dict[Decoding, list[int]] = {}
        for index, request in enumerate(requests):
            by_decoding.setdefault(self._decoding_of(request), []).append(index)
        found: list[Any] = [None] * len(requests)
        for decoding, indices in by_decoding.items():
            responses = self._answers([requests[index].args[0] for index in indices], decoding, num_samples)
            for index, each in zip(indices, responses, strict=True):
                found[index] = each
        return found

    def _answers(self, texts: Sequence[str], decoding: Decoding, num_samples: int) -> list[list[Response]]:
        fitted = [self.subject.fit(self.tok_encode(text), decoding.max_new_tokens) for text in texts]
        controls = make_controls(decoding.temperature, **dict(decoding.cuts))
        drawn = self.subject.generate([tokens for tokens, _, _ in fitted], [limit for _, limit, _ in fitted], controls,
                                      decoding.stops, self.generation.seed, num_samples)
        return [[Response(answer.text, answer.finish_reason, len(tokens), cut) for answer in answers]
                for (tokens, _, cut), answers in zip(fitted, drawn, strict=True)]

    def _decoding_of(self, request: Instance) -> Decoding:
        """Raises InputError for what a task asks of generation that the engine has not."""
        kwargs = {name: value for name, value in request.args[1].items() if value is not None}
        beyond = [name for name, value in kwargs.items()
                  if name not in READ_ELSEWHERE and (name, value) != ("num_beams", 1)]
        if beyond:
            raise InputError(f"task {request.task_name} asks for generation_kwargs {shown(beyond)}, which the engine "
                             f"has not; give a task without (--include-path)")
        limit = next((kwargs[name] for name in LIMIT_NAMES if name in kwargs), DEFAULT_LIMIT)
        until = kwargs.get("until", ())
        stops = [until] if isinstance(until, str) else until
        temperature = float(kwargs.get("temperature", 1.0 if kwargs.get("do_sample") else 0.0))
        temperature = temperature if kwargs.get("do_sample", True) else 0.0
        if self.generation.temperature is not None:
            temperature = self.generation.temperature
        elif (self.generation.num_samples or 1) > 1 and not temperature:
            temperature = 1.0  # several greedy answers would be one
        return Decoding(int(self.generation.max_new_tokens or limit), temperature,
                     tuple((name, kwargs[name]) for name in CUTS if name in kwargs), tuple(filter(None, stops)))


class Judged(NamedTuple):
    """What came of a task."""

    samples: dict[str, list[Sample]]
    """of the task, and of TASK_parts where a metric gives a document several verdicts, as ifeval's of instructions do:
    each is a question there"""
    corpus: dict[str, float]
    """metrics that are of all documents together and no mean of theirs, as lm-eval computes them"""


def judge(task: Any, model: HarnessModel, limit: int | None = None, chat: bool = False) -> Judged:
    """Runs a task of lm-eval's on its first `limit` documents, or all; a Sample an answer.

    A question is answered as often as `model.generation` says, or the task itself. `chat`: prompts are conversations,
    examples of answers turns of them.
    """
    with seeded(task):
        return _judge(task, model, limit, chat)


def _judge(task: Any, model: HarnessModel, limit: int | None, chat: bool) -> Judged:
    with own_code(task):
        task.build_all_requests(limit=limit, apply_chat_template=chat, fewshot_as_multiturn=chat,
                                chat_template=model.apply_chat_template if chat else None,
                                tokenizer_name=model.tokenizer_name if chat else "")
    num_samples = model.generation.num_samples or task.config.repeats or 1
    responses: dict[int, list[Response]] = {}
    for kind in {each.request_type: None for each in task.instances}:
        requests = [each for each in task.instances if each.request_type == kind]
        answered = model.respond(requests, num_samples)
        responses |= {id(request): each for request, each in zip(requests, answered, strict=True)}
    repeats = [_grade_all(task, model, responses, repeat) for repeat in range(num_samples)]
    graded = [each for group in zip(*repeats, strict=True) for each in group]
    parts = [part for each in graded for part in _parts(*each)]
    samples = {task.config.task: [sample for sample, _ in graded]}
    return Judged(samples | ({parts[0].task: parts} if parts else {}), _corpus(task, [each for _, each in repeats[0]]))


@contextlib.contextmanager
def own_code(task: Any) -> Iterator[None]:
    """A block of what a task itself does with its rows. Raises InputError for whatever that raises."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - functions and templates of anybody's, on anybody's data
        raise InputError(f"task {task.config.task}: a row of its data, or the task itself, will not do "
                         f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); mend it, or leave the task "
                         f"out") from None


Graded = dict[str, Any]
"""what a task says of a document, by "metric,filter": a number, or several, or what its aggregation takes"""


def _grade_all(task: Any, model: HarnessModel, responses: Mapping[int, list[Response]], repeat: int,
               ) -> list[tuple[Sample, Graded]]:
    """(sample, what the task says) of every document's answer number `repeat`."""
    documents: dict[int, list[Instance]] = {}
    for request in task.instances:
        request.resps = [_without_thought(responses[id(request)][repeat].value)]
        documents.setdefault(request.doc_id, []).append(request)
    with own_code(task):
        task.apply_filters()
    ordered = [sorted(requests, key=lambda each: each.idx) for requests in documents.values()]
    graded, failure = _grade(task, ordered)
    if failure:
        warn(f"{task.config.task}: {sum(each is None for each in graded)} of {len(graded)} answers could not be graded "
             f"({failure}), and count as failed")
    names = list(dict.fromkeys(name for each in graded for name in each or _metrics(task, ordered[0])))
    found = [(_sample(task, model, requests, responses, repeat), dict.fromkeys(names) if each is None else each)
             for requests, each in zip(ordered, graded, strict=True)]
    for sample, each in found:
        sample.values = _values(task, each)
    _tell_apart([sample for sample, _ in found])
    return found


def _grade(task: Any, documents: Sequence[Sequence[Instance]]) -> tuple[list[Graded | None], str]:
    """What the task says of each document, None where it fails on the answer, and how it failed first."""
    graded: list[Graded | None] = []
    failure = ""
    for requests in documents:
        try:
            graded.append({f"{metric},{name}": value for name in requests[0].filtered_resps for metric, value in
                           task.process_results(requests[0].doc, [each.filtered_resps[name] for each in requests]
                                                ).items()})
        except Exception as error:  # noqa: BLE001 - a task's own code, on what a model wrote
            graded.append(None)
            failure = failure or f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    return graded, failure


def _metrics(task: Any, requests: Sequence[Instance]) -> list[str]:
    return [f"{metric},{name}" for name in requests[0].filtered_resps for metric in task.aggregation()]


def _sample(task: Any, model: HarnessModel, requests: Sequence[Instance], responses: Mapping[int, list[Response]],
            repeat: int) -> Sample:
    document, mine = requests[0].doc, [responses[id(each)][repeat] for each in requests]
    prompt = _text(requests[0].args[0])
    with own_code(task):
        target = task.doc_to_target(document)
    question = _digest(task.config.task, document, model.before_template(prompt))
    return Sample(task.config.task, question, _family(document, question), repeat, prompt,
                  _completion(requests, mine), target, {}, mine[0].finish_reason, document,
                  mine[0].context_tokens, any(each.truncated_context for each in mine),
                  _answer(requests[0].filtered_resps))


def _values(task: Any, graded: Graded) -> dict[str, float | None]:
    """The numbers that a document has of its own: those whose mean is the task's figure; log-likelihoods, which tasks
    make perplexities of, by what they are."""
    values: dict[str, float | None] = {}
    for name, value in graded.items():
        metric, _, of = name.partition(",")
        if value is None or (_is_mean(task, metric) and isinstance(value, numbers.Real)):
            values[name] = None if value is None else float(value)
        elif metric == "perplexity":
            values[f"log_likelihood,{of}"] = float(value)
        elif metric in PER_UNIT and value[1]:
            values[f"{PER_UNIT[metric]},{of}"] = -value[0] / value[1] / math.log(2)
    return values


PER_UNIT = {"word_perplexity": "text_bits_per_word", "byte_perplexity": "text_bits_per_byte",
            "bits_per_byte": "text_bits_per_byte"}
"""metrics of (log-likelihood, number of units) -> what a text has of its own"""


def _is_mean(task: Any, metric: str) -> bool:
    return task.aggregation().get(metric, mean) in (mean, nanmean)


def _corpus(task: Any, graded: Sequence[Graded]) -> dict[str, float]:
    """Of the first answers. Several verdicts of a document are parts of their own."""
    found = {}
    for name in dict.fromkeys(name for each in graded for name in each):
        items = [each[name] for each in graded if each.get(name) is not None]
        if items and not _is_mean(task, name.partition(",")[0]) and not isinstance(items[0], list):
            found[name] = _aggregated(task, name, items)
    return found


def _aggregated(task: Any, name: str, items: list[Any]) -> float:
    """A perplexity that no float holds is endless; what the task's own code fails on is no number, and told."""
    try:
        return float(task.aggregation()[name.partition(",")[0]](items))
    except OverflowError:
        return math.inf
    except Exception as error:  # noqa: BLE001 - code of anybody's, on what a model wrote
        warn(f"{task.config.task}: {name} of all documents together cannot be told ({type(error).__name__}: "
             f"{' '.join(str(error).split())[:100]})")
        return math.nan


def _tell_apart(samples: Sequence[Sample]) -> None:
    """Documents that are there twice are two questions, as lm-eval counts them."""
    seen: collections.Counter[str] = collections.Counter()
    for sample in samples:
        seen[sample.question] += 1
        if seen[sample.question] > 1:
            sample.question += f"#{seen[sample.question]}"


def _parts(sample: Sample, graded: Graded) -> list[Sample]:
    """A sample for each verdict of metrics that give a document several, all of one family."""
    several = {name: value for name, value in graded.items() if isinstance(value, list) and value
               and all(isinstance(each, numbers.Real) for each in value)}
    return [dataclasses.replace(sample, task=f"{sample.task}_parts", question=f"{sample.question}/{place}",
                                values={name: float(value[place]) for name, value in several.items()
                                        if place < len(value)})
            for place in range(max(map(len, several.values()), default=0))]


def _answer(filtered: Mapping[str, Any]) -> str | None:
    """What a filter took out of the answer, if one did and found any."""
    found = next((value for name, value in filtered.items() if name != "none" and isinstance(value, str)), None)
    return None if found == NOTHING_FOUND else found


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
