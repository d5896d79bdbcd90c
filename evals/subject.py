"""What is judged: a model with its tokenizer, which says how likely a text is and answers prompts.

    subject = Subject(model, tokenizer, layout)
    subject.load(variables)
    subject.loglikelihoods([(context, continuation), ...])   # token ids -> (log-probability, whether it is greedy)
    subject.rolling([tokens, ...])                           # -> log-probability of whole texts, however long
    subject.generate(prompts, 256, make_controls(0.0))       # -> num_samples answers of each

Log-probabilities are the scorer's, answers are the engine's; in a training run both are the run's own. What a subject
says depends on weights, prompt, controls and seed alone, never on what else is asked: so it may be kept (cache.py).
"""

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from batch import bucket_length, ladder
from data.encode import check_ends, start_tokens
from errors import InputError
from evals.cache import NOTHING_KEPT, Cache
from evals.likelihood import Pair, make_scorer
from models.transformer import Transformer
from rollouts.engine import Engine, Request, make_engine
from rollouts.generate import stream
from rollouts.layout import DEFAULT
from rollouts.requests import fold_keys
from rollouts.sampling import Controls
from rollouts.stops import make_ends
from sharding.layout import Layout
from sharding.settings import SamplingMesh


class Answer(NamedTuple):
    """What a prompt was answered."""

    text: str
    """without end token, and up to the first stop string"""
    tokens: list[int]
    finish_reason: str
    """stop, length (cut at max_new_tokens), or error (numbers that are not finite)"""


Progress = Callable[[int, str], contextlib.AbstractContextManager[Callable[[int], None]]]
"""a number of things to do and what they are -> a function that is told how many more are done (training.progress)"""


@contextlib.contextmanager
def nothing_shown(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """The Progress of a subject that is judged beside something else."""
    yield lambda count: None


class Subject:
    """A model that is judged; see the module.

    `engine`: a training run's own; None: one is made for the longest context and the number of answers that are asked
    for, with `num_slots` slots at the most, laid out as `sampling` says.
    """

    def __init__(self, model: Transformer, tokenizer: Any, layout: Layout, engine: Engine | None = None,
                 num_slots: int = 64, sampling: SamplingMesh = DEFAULT, cache: Cache = NOTHING_KEPT,
                 progress: Progress = nothing_shown):
        check_ends(tokenizer, model.config.vocab_size)
        self.model, self.tokenizer, self.layout = model, tokenizer, layout
        self.cache, self._progress = cache, progress
        self.max_length = model.config.max_length
        self.engine, self._own_engine, self._longest, self._num_slots = engine, engine is None, 0, 0
        self._max_num_slots, self._sampling = num_slots, sampling
        self.variables, self.version = None, 0
        self._score = make_scorer(model, layout)

    def load(self, variables: dict[str, Any], version: int = 0) -> None:
        """Is judged with these weights from now on."""
        self.variables, self.version = variables, version
        self.cache.open(variables, str(self.model.config.dtype))
        if self.engine is not None:
            self.engine.load(variables, version)

    def release(self) -> None:
        """Holds no weights any more, and no memory for sampling but an engine's that is not its own; until load()."""
        self.variables = None
        if self._own_engine:
            self.engine, self._longest = None, 0

    @property
    def prefix(self) -> int:
        """The token that a text without context is predicted from: BOS, or else the end token."""
        tokenizer = self.tokenizer
        return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id

    def encode(self, text: str) -> list[int]:
        """With the BOS that the tokenizer begins texts with, unless the text brings it."""
        start = start_tokens(self.tokenizer)
        tokens = self.tokenizer.encode(text)
        return tokens if tokens[: len(start)] == start else start + tokens

    # ----------------------------------------------------------------------------------------------- log-probabilities

    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """(log p(continuation | context), whether greedy decoding would say it) of each.

        An empty context is the `prefix`. What is longer than the model's context loses tokens at the front of its
        context (is_cut). Raises InputError for a continuation that alone is longer.
        """
        fitted = [self._fitted(*pair) for pair in pairs]
        scored = self._kept([["loglikelihood", *pair] for pair in fitted],
                            lambda missing: self._score(self.variables, fitted, {*missing}), "scoring")
        return [(float(logp), bool(greedy)) for logp, greedy in scored]

    def is_cut(self, pair: Pair) -> bool:
        """Whether a context loses tokens in loglikelihoods: the model reads all but the last token."""
        return len(pair[0]) + len(pair[1]) > self.max_length + 1

    def rolling(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """log p(text) of each, all its tokens predicted once: the first from `prefix`, those beyond the model's context
        from as many before them as it holds."""
        windows = [rolling_windows(tokens, self.prefix, self.max_length) for tokens in texts]
        values = iter(self.loglikelihoods([window for each in windows for window in each]))
        return [sum(next(values)[0] for _ in each) for each in windows]

    def _fitted(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[list[int], list[int]]:
        """A pair that the model can read."""
        if len(continuation) > self.max_length:
            raise InputError(f"a continuation of {len(continuation)} tokens is longer than the model's context of "
                             f"{self.max_length}; give shorter ones")
        room = self.max_length + 1 - len(continuation)
        return list(context or [self.prefix])[-room:], list(continuation)

    # --------------------------------------------------------------------------------------------------------- answers

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int], controls: Controls,
                 stops: Sequence[str] = (), seed: int = 0, num_samples: int = 1) -> list[list[Answer]]:
        """`num_samples` answers of each prompt. Each is drawn with a key of its own, made of seed, prompt and number.

        Raises InputError as Engine.submit does: prompt and max_new_tokens must fit the model's context (fit).
        """
        requests = self._requests(prompts, max_new_tokens, controls, stops, seed, num_samples)
        drawn = self._kept([_drawn_key(request, controls, stops) for request in requests],
                           lambda missing: self._draw(requests, missing), "answering")
        answers = [self._answer(tokens, reason, stops) for tokens, reason in drawn]
        return [answers[start : start + num_samples] for start in range(0, len(answers), num_samples)]

    def fit(self, prompt: Sequence[int], max_new_tokens: int) -> tuple[list[int], int, bool]:
        """(prompt, max_new_tokens, whether the prompt was cut) so that both fit the model's context.

        A limit that leaves half of the context or more to the prompt stands, and a longer prompt is cut at its front,
        as lm-eval does. A larger limit, one that must not cut reasoning, gives way to the prompt instead, whose
        beginning lm-eval would cut away for it.
        """
        room = self.max_length - max_new_tokens
        if len(prompt) <= room:
            return list(prompt), max_new_tokens, False
        if max_new_tokens <= self.max_length // 2:
            return list(prompt[len(prompt) - room :]), max_new_tokens, True
        kept = list(prompt[-(self.max_length - self.max_length // 2) :])
        return kept, min(max_new_tokens, self.max_length - len(kept)), len(kept) < len(prompt)

    def _requests(self, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int], controls: Controls,
                  stops: Sequence[str], seed: int, num_samples: int) -> list[Request]:
        limits = np.broadcast_to(np.asarray(max_new_tokens), (len(prompts),)).tolist()
        ends, key = make_ends(self.tokenizer, stops), jax.random.key(seed)
        requests = []
        for prompt, limit in zip(prompts, limits, strict=True):
            own = jax.random.fold_in(key, zlib.crc32(np.asarray(prompt, np.int32).tobytes()))
            requests += [Request(prompt, limit, each, controls, ends) for each in fold_keys(own, range(num_samples))]
        return requests

    def _draw(self, requests: Sequence[Request], indices: Sequence[int]) -> Iterator[tuple[int, tuple[list[int], str]]]:
        """(index, (tokens, finish reason)) of these requests, as they finish, from an engine as long and with as many
        slots as all of them need, whichever are known: what an evaluation that goes on draws is what it would have
        drawn."""
        wanted = [requests[index] for index in indices]
        self._make_engine(max(len(each.tokens) + each.max_new_tokens for each in requests), len(requests))
        for number, completion in stream(self.engine, wanted):
            yield indices[number], (completion.tokens, completion.finish_reason)

    def _make_engine(self, longest: int, count: int) -> None:
        """One for contexts of `longest` tokens, or of a few lengths above, with slots for `count` requests, a power of
        two unless these are more than there may be; the one that there is, if it is such."""
        if not self._own_engine:
            return
        num_slots = min(self._max_num_slots, 1 << (count - 1).bit_length())
        if self.engine is not None and longest <= self._longest and num_slots == self._num_slots:
            return
        self.engine = None  # what is replaced gives its memory back first
        self._longest = min(self.max_length, bucket_length(max(longest, self._longest), ladder(self.max_length)))
        self._num_slots = num_slots
        self.engine = make_engine(self.model, num_slots, self._longest, self.layout, self._sampling)
        self.engine.load(self.variables, self.version)

    def _answer(self, tokens: Sequence[int], finish_reason: str, stops: Sequence[str]) -> Answer:
        text = self.tokenizer.decode(tokens)
        for stop in stops:
            text = text.split(stop)[0]
        return Answer(text, list(tokens), finish_reason)


    def _kept(self, keys: Sequence[Any], compute: Callable[[list[int]], Iterator[tuple[int, Any]]], what: str,
              ) -> list[Any]:
        """What is said to each of the keys: as it was said before, or what `compute` gives for those that lack it."""
        responses = [self.cache.get(key) for key in keys]
        missing = [index for index, each in enumerate(responses) if each is None]
        with self._progress(len(keys), what) as advance:
            advance(len(keys) - len(missing))
            for index, value in compute(missing) if missing else ():
                responses[index] = value
                self.cache.put(keys[index], value)
                advance(1)
        return responses


def rolling_windows(tokens: Sequence[int], prefix: int, max_length: int) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) of each window: continuations make up the text, and no pair has more than max_length + 1
    tokens. The first context is the prefix; the last window has as many tokens as the others, of which it predicts
    those that are left."""
    text = [prefix, *tokens]
    ends = [*range(max_length, len(tokens), max_length), len(tokens)] if tokens else []
    starts = [0, *ends[:-1]]
    return [(text[max(0, end - max_length) : start + 1], text[start + 1 : end + 1]) for start, end in zip(starts, ends)]


def _drawn_key(request: Request, controls: Controls, stops: Sequence[str]) -> list[Any]:
    return ["generate", list(request.tokens), request.max_new_tokens, np.asarray(request.key).tolist(),
            [float(each) for each in controls], list(stops)]
